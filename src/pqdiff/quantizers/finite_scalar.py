"""Finite scalar quantization: every channel is bounded and rounded to one of a few levels. There is no codebook to learn.

Mentzer et al. 2023: Finite Scalar Quantization: VQ-VAE Made Simple (arXiv 2309.15505). Levels and bound are those of the
paper's code. Tokens are mixed-radix numbers whose first channel is the least significant digit, as in
vector-quantize-pytorch; implementations with the last channel least significant number the same codes differently.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from pqdiff.quantizers.base import Quantizer, QuantizerOutput, register_quantizer
from pqdiff.quantizers.soft import posterior_mean

_MOST_BITS = 57  # of a token: what caches of tokens can pack
_MOST_LEVELS = 2**16  # of a channel: fp32 tells their codes apart


@register_quantizer("finite_scalar")
class FiniteScalarQuantizer(Quantizer):
    """Rounds every channel to one of its L levels: the integers from -(L // 2) on, divided by L // 2.

    The codes of an odd L are symmetric, from -1 to 1; those of an even L go from -1 to 1 - 2 / L. z may be any real number:
    a shifted tanh bounds it first, and the gradient of the codes reaches z through this tanh, as if nothing was rounded.
    Latents are codes, already bounded.

    Args:
        latent_channels: number of latent channels d.
        levels: number of levels L, the same for all channels or one per channel; each from 2 to 65536.
        num_subspaces: number of tokens S, each for a contiguous group of channels; must divide `latent_channels`. It
            changes how codes are numbered, not the codes.

    Raises:
        ValueError: if the numbers do not fit each other, or a token could take more than 2^57 values.
    """

    fp32_tensors = ("frequencies",)

    def __init__(self, latent_channels: int, levels: int | Sequence[int], num_subspaces: int = 1):
        super().__init__()
        if latent_channels < 1 or num_subspaces < 1 or latent_channels % num_subspaces:
            raise ValueError(
                f"latent_channels ({latent_channels}) must be divisible by num_subspaces ({num_subspaces}), both at least 1"
            )
        per_channel = (levels,) * latent_channels if isinstance(levels, int) else tuple(levels)
        if len(per_channel) != latent_channels:
            raise ValueError(
                f"levels ({levels}) has {len(per_channel)} entries, but there are {latent_channels} latent_channels: "
                "give one number per channel, or one for all"
            )
        if not all(isinstance(number, int) and 2 <= number <= _MOST_LEVELS for number in per_channel):
            raise ValueError(f"levels ({levels}) must be integers from 2 to {_MOST_LEVELS}")
        self.in_channels = self.code_channels = self.latent_channels = latent_channels
        self.num_subspaces = num_subspaces
        self.channel_levels = per_channel
        width = latent_channels // num_subspaces
        self._groups = [per_channel[start : start + width] for start in range(0, latent_channels, width)]
        self._sizes = tuple(math.prod(group) for group in self._groups)
        if max(self._sizes) > 2**_MOST_BITS:
            raise ValueError(
                f"levels ({levels}) make tokens of 2^{math.log2(max(self._sizes)):.1f} values, at most 2^{_MOST_BITS} "
                f"are possible: raise num_subspaces ({num_subspaces})"
            )
        basis = [[math.prod(group[:digit]) for digit in range(width)] for group in self._groups]
        self.register_buffer("_levels", torch.tensor(per_channel), persistent=False)  # (d,)
        self.register_buffer("_basis", torch.tensor(basis), persistent=False)  # (S, d / S)
        self.register_buffer("frequencies", self._exists().float() / self._levels[:, None])  # (d, max(L))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return self._sizes

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check(z, self.in_channels, "z")
        bounded = self._bound(z)
        steps = self._clamp(bounded.detach().round())
        # The added 0 carries the gradient; unlike bounded + (steps - bounded) it leaves the codes exact.
        codes = (steps + (bounded - bounded.detach())) / self._half_width()
        return QuantizerOutput(codes.to(z.dtype), self._tokens(steps), codes.new_zeros(()), {})

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        self._check(z, self.in_channels, "z")
        return self._tokens(self._clamp(self._bound(z.detach()).round()))

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        basis = self._basis[..., None, None]  # (S, d / S, 1, 1)
        radix = self._levels.view_as(basis)
        digits = (indices.long()[:, :, None] // basis % radix).flatten(1, 2)  # (B, d, h, w)
        half_width = self._half_width()
        return (digits - half_width).float() / half_width

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents are bounded already: they are rounded to the nearest level, the lower of two equally near ones."""
        self._check(latents, self.latent_channels, "latents")
        steps = (latents.detach().float() * self._half_width() - 0.5).ceil()
        return self._tokens(self._clamp(steps))

    def posterior_mean(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Channel by channel: frequencies are known per channel, and channels count as independent."""
        self._check(latents, self.latent_channels, "latents")
        half_width = (self._levels // 2)[:, None]
        steps = torch.arange(self.frequencies.shape[1], device=latents.device) - half_width
        table = torch.where(self._exists(), steps / half_width, 0.0)  # (d, max(L)); frequency 0 where L is smaller
        vectors = latents.flatten(2)[:, :, None]  # (B, d, 1, h w)
        mean = posterior_mean(vectors, table[..., None], self.frequencies, noise.float()[:, None])
        return mean.flatten(1, 2).unflatten(2, latents.shape[2:])

    @torch.no_grad()
    def set_frequencies(self, counts: list[torch.Tensor]) -> None:
        rows = []
        for group, count in zip(self._groups, counts, strict=True):
            digits = count.double().view(*reversed(group))  # the first channel is the last axis
            for channel in range(len(group)):
                others = [axis for axis in range(len(group)) if axis != len(group) - 1 - channel]
                rows.append(digits.sum(dim=others) if others else digits)
        table = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(self.frequencies.device)  # (d, max(L))
        table = torch.where(self._exists(), table + 0.5, 0.0)  # what was not seen is rare, not impossible
        self.frequencies.copy_(table / table.sum(dim=1, keepdim=True))

    def extra_repr(self) -> str:
        levels = self.channel_levels[0] if len(set(self.channel_levels)) == 1 else list(self.channel_levels)
        return f"{self.latent_channels}, levels={levels}, num_subspaces={self.num_subspaces}"

    def _bound(self, z: torch.Tensor) -> torch.Tensor:
        """z in steps, fp32, between just beyond the lowest and the highest level."""
        levels = self._levels.view(-1, 1, 1).float()
        half = (levels - 1) * (1 + 1e-3) / 2
        offset = 0.5 * (levels % 2 == 0)
        return (z.float() + (offset / half).atanh()).tanh() * half - offset

    def _clamp(self, steps: torch.Tensor) -> torch.Tensor:
        """Whole steps `(B, d, h, w)` within the levels. The bound leaves them when there are more than 1000."""
        half_width = self._half_width()
        return torch.minimum(torch.maximum(steps, -half_width), self._levels.view(-1, 1, 1) - 1 - half_width)

    def _tokens(self, steps: torch.Tensor) -> torch.Tensor:
        """int64 tokens `(B, S, h, w)` of whole steps `(B, d, h, w)`; a NaN counts as the lowest level."""
        digits = torch.where(steps.isnan(), 0, steps + self._half_width()).long()
        return (digits.unflatten(1, self._basis.shape) * self._basis[..., None, None]).sum(dim=2)

    def _half_width(self) -> torch.Tensor:
        """Steps per unit of the codes `(d, 1, 1)`."""
        return (self._levels // 2).view(-1, 1, 1)

    def _exists(self) -> torch.Tensor:
        """bool `(d, max(L))`: whether a channel has so many levels."""
        return torch.arange(max(self.channel_levels), device=self._levels.device) < self._levels[:, None]
