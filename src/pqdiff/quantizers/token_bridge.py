"""TokenBridge: the channels of a Gaussian autoencoder, rounded one by one to bins of equal probability. No training.

Wang et al. 2025: Bridging Continuous and Discrete Tokens for Autoregressive Visual Generation (arXiv 2503.16430).
"""

from collections.abc import Sequence

import torch

from pqdiff.quantizers.base import Quantizer, QuantizerOutput, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer


@register_quantizer("token_bridge")
class TokenBridgeQuantizer(CodebookQuantizer):
    """Maps `latent_range` to [-r, r], cuts a standard normal into B bins of equal probability, and takes the nearest mean
    of a bin. Values beyond the outermost means saturate.

    Args:
        latent_channels: number of latent channels d, each a token.
        num_bins: number of bins B.
        sigma_range: r, standard deviations on each side.
        latent_range: lowest and highest value of the latents that is meant to be told apart.

    Raises:
        ValueError: if a number is out of range.
    """

    can_restart = False
    restart = Quantizer.restart

    def __init__(
        self,
        latent_channels: int,
        num_bins: int = 64,
        sigma_range: float = 3.0,
        latent_range: Sequence[float] = (-5.0, 5.0),
    ):
        super().__init__(latent_channels, latent_channels, num_bins)
        low, high = latent_range
        if num_bins < 2:
            raise ValueError(f"num_bins ({num_bins}) must be at least 2")
        if not 0 < sigma_range < float("inf"):
            raise ValueError(f"sigma_range ({sigma_range}) must be a positive number")
        if not low < high:
            raise ValueError(f"latent_range ({list(latent_range)}) must be two numbers, the lower one first")
        self.sigma_range, self.latent_range = sigma_range, (low, high)
        levels = (bin_means(num_bins) + sigma_range) / (2 * sigma_range) * (high - low) + low
        self.register_buffer("levels", levels.float(), persistent=False)  # (B,)

    def codewords(self) -> torch.Tensor:
        return self.levels.float()[None, :, None].expand(self.num_subspaces, -1, -1)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)
        codes = self.decode(indices).to(z.dtype) + (z - z.detach())
        return QuantizerOutput(codes, indices, codes.new_zeros((), dtype=torch.float32), {})

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, num_bins={self.codebook_size}, sigma_range={self.sigma_range}, "
            f"latent_range={self.latent_range}"
        )


def bin_means(num_bins: int) -> torch.Tensor:
    """Means `(B,)`, float64, of a standard normal within B intervals of equal probability:
    B (phi(b_i) - phi(b_{i + 1})) for the density phi and the bounds b."""
    with torch.device("cpu"):
        bounds = torch.special.ndtri(torch.linspace(0, 1, num_bins + 1, dtype=torch.float64))
        density = (-bounds.square() / 2).exp() / (2 * torch.pi) ** 0.5
        return num_bins * (density[:-1] - density[1:])
