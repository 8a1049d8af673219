"""What leaves `encode` and enters `decode`: latents of zero mean and, averaged over the channels, unit variance.

latents = (z - mean) / std^gamma * common, with `common` such that the mean variance is 1. gamma = 1 gives all channels
the same signal-to-noise ratio at every diffusion step; gamma = 0 keeps the order in which coarse structure emerges before
fine grain.
"""

import math
from collections.abc import Sequence

import torch

from pqdiff.quantizers import Fp32Module


class LatentStatistics(Fp32Module):
    """Affine map per channel between a quantizer's latents and standardized latents, in fp32.

    Args:
        channels: number of latent channels d.
        mean: d means of the quantizer's latents, or None for the identity.
        std: d standard deviations of them, or None for the identity.
        exponent: gamma in [0, 1].

    Raises:
        ValueError: for a wrong number of values, a standard deviation that is not positive, or gamma out of range.
    """

    def __init__(
        self,
        channels: int,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        exponent: float = 0.0,
    ):
        super().__init__()
        if (mean is None) != (std is None):
            raise ValueError("statistics_config: mean and std must be given together, or neither")
        if not 0 <= exponent <= 1:
            raise ValueError(
                f"statistics_config: exponent ({exponent}) must be from 0 (one scale for all channels) to 1"
            )
        self.identity = mean is None
        if self.identity:
            return
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != channels:
                raise ValueError(
                    f"statistics_config: {name} has {len(values)} values, but latent_channels is {channels}"
                )
        if not all(0 < value < float("inf") for value in std):
            raise ValueError("statistics_config: std must hold positive numbers: a constant channel carries nothing")
        if not all(map(math.isfinite, mean)):
            raise ValueError("statistics_config: mean must hold finite numbers")
        std = torch.tensor(std, dtype=torch.float64, device="cpu")
        scale = std**-exponent
        scale /= (std * scale).square().mean().sqrt()
        # Derived from the config at every construction, hence not saved.
        mean = torch.tensor(mean, dtype=torch.float32, device="cpu")
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)  # (d, 1, 1)
        self.register_buffer("scale", scale.float().view(-1, 1, 1), persistent=False)  # (d, 1, 1)

    def standardize(self, z: torch.Tensor) -> torch.Tensor:
        """Latents of the quantizer `(B, d, h, w)` to standardized ones, fp32."""
        return z.float() if self.identity else (z.float() - self.mean) * self.scale

    def restore(self, latents: torch.Tensor) -> torch.Tensor:
        """Standardized latents `(B, d, h, w)` of any dtype to those of the quantizer, fp32."""
        return latents.float() if self.identity else latents.float() / self.scale + self.mean

    def restore_noise(self, noise: float, latents: torch.Tensor) -> torch.Tensor:
        """Standard deviations `(d,)` that noise on standardized latents has in the quantizer's units."""
        ones = latents.new_ones(latents.shape[1], dtype=torch.float32)
        return noise * ones if self.identity else noise * ones / self.scale.flatten()
