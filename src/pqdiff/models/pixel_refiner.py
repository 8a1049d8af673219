"""A small network that mends decoded pictures: borders of patches, and what blurs where a code is coarse.

It sees pixels, not latents: neighbors across the border of a patch, and where in its patch a pixel lies. Beside it only the
linear path is needed, and the rate stays the same. It begins silent: training starts from the picture as it was.
"""

import torch
import torch.nn.functional as F
from torch import nn

_STRIDE = 2  # pixels per side of what the convolutions see as one place: a quarter of the work, twice the view


class PixelRefiner(nn.Module):
    """Residual convolutions at half the resolution of the picture.

    Args:
        channels: of the picture.
        patch_size: side F of a patch in pixels; even.
        width: channels of the convolutions.
        blocks: number of residual blocks.

    Raises:
        ValueError: for an odd patch size, or a width or number of blocks below 1.
    """

    def __init__(self, channels: int, patch_size: int, width: int, blocks: int):
        super().__init__()
        for name, value in (("refiner_channels", width), ("refiner_blocks", blocks)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1; refiner_channels 0 for no refiner")
        if patch_size % _STRIDE:
            raise ValueError(f"refiner_channels ({width}) needs an even downsampling factor, got {patch_size}")
        side = patch_size // _STRIDE
        self.first = nn.Conv2d(channels * _STRIDE**2, width, 3, padding=1)
        self.places = nn.Parameter(torch.zeros(width, side, side))  # where in its patch a pixel lies
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.last = nn.Conv2d(width, channels * _STRIDE**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def reach(self) -> int:
        """Pixels to each side that a pixel depends on."""
        return _STRIDE * (len(self.blocks) + 3) - 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """What to add to a decoded image `(B, C, H, W)` whose sides F divides; same shape.

        Image by image: convolutions of a batch may sum in another order, and a photo's pixels shall not depend on its
        company.
        """
        return torch.cat([self._correction(part) for part in image.split(1)])

    def _correction(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(F.pixel_unshuffle(image, _STRIDE))  # (1, width, H / 2, W / 2)
        side = self.places.shape[1]
        x = F.relu(x + self.places.repeat(1, x.shape[2] // side, x.shape[3] // side))
        for block in self.blocks:
            x = x + F.relu(block(x))
        return F.pixel_shuffle(self.last(x), _STRIDE)
