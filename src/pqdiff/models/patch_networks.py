"""Small networks at the resolution of the latents, beside the linear path over patches.

They see neighboring positions through depthwise convolutions only, and normalize each position by itself: a crop has the
statistics of the whole. They begin silent, so that training starts from exactly what the linear path does.
"""

import torch
import torch.nn.functional as F
from torch import nn

KERNEL = 3  # side of the depthwise convolutions
_EXPANSION = 3


class PositionLinear(nn.Linear):
    """Linear layer over the last dimension whose result depends on neither the batch size nor the number of CPU threads,
    as that of `PointwiseConv`."""

    _TERMS = 768  # the math library splits longer sums among threads

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(..., in_features)` -> `(..., out_features)`."""
        if self.in_features <= self._TERMS:
            return F.linear(x, self.weight, self.bias)
        parts = zip(x.split(self._TERMS, dim=-1), self.weight.split(self._TERMS, dim=1), strict=True)
        return sum(F.linear(part, weight) for part, weight in parts) + self.bias


class PatchBlock(nn.Module):
    """Residual block: neighbors, then each position by itself. The identity at the start.

    Args:
        channels: width C.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.neighbors = nn.Conv2d(channels, channels, KERNEL, padding=KERNEL // 2, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.expand = PositionLinear(channels, _EXPANSION * channels)
        self.reduce = PositionLinear(_EXPANSION * channels, channels)
        nn.init.zeros_(self.reduce.weight)
        nn.init.zeros_(self.reduce.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x `(B, h, w, C)`, same shape out."""
        around = self.neighbors(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.reduce(F.gelu(self.expand(self.norm(around)), approximate="tanh"))


class PatchNetwork(nn.Module):
    """A stack of blocks between two linear layers, the last of which gives 0 at the start.

    Args:
        in_channels: features per position.
        channels: width of the blocks.
        blocks: number of blocks: a position sees so many neighbors to each side.
        out_channels: outputs per position.

    Raises:
        ValueError: for a width or number of blocks below 1.
    """

    def __init__(self, in_channels: int, channels: int, blocks: int, out_channels: int):
        super().__init__()
        for name, value in (("patch_network_channels", channels), ("patch_network_blocks", blocks)):
            if value < 1:
                raise ValueError(
                    f"{name} ({value}) must be at least 1; patch_network_channels 0 for no patch networks"
                )
        self.first = PositionLinear(in_channels, channels)
        self.blocks = nn.ModuleList(PatchBlock(channels) for _ in range(blocks))
        self.norm = nn.LayerNorm(channels)
        self.last = PositionLinear(channels, out_channels)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """features `(B, in_channels, h, w)` -> `(B, out_channels, h, w)`."""
        x = self.first(features.permute(0, 2, 3, 1))  # (B, h, w, C)
        for block in self.blocks:
            x = block(x)
        return self.last(self.norm(x)).permute(0, 3, 1, 2)
