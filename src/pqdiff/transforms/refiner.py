"""A small network that corrects decoded images: borders of patches, and what a coarse code blurs.

It sees pixels, not codes: neighbors across the border of a patch, and where in its patch a pixel lies. The rate stays the
same. Its correction is zero at the start, so training begins with the images as they were.
"""

import torch
import torch.nn.functional as F
from torch import nn

_STRIDE = 2  # pixels per side of what the convolutions see as one place: a quarter of the work, twice the view


class PixelRefiner(nn.Module):
    """Residual convolutions at half the resolution of the image.

    Args:
        image_channels: channels of the image.
        patch_size: side F of a patch in pixels; even.
        channels: width of the convolutions.
        blocks: number of residual blocks.

    Raises:
        ValueError: for an odd patch size, or a width or number of blocks below 1.
    """

    def __init__(self, image_channels: int, patch_size: int, channels: int = 32, blocks: int = 4):
        super().__init__()
        for name, value in (("channels", channels), ("blocks", blocks)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(
                    f"refiner_config: {name} ({value}) must be at least 1; refiner_config None for no refiner"
                )
        if patch_size % _STRIDE:
            raise ValueError(f"refiner_config needs an even downsampling factor, got {patch_size}")
        side = patch_size // _STRIDE
        self.first = nn.Conv2d(image_channels * _STRIDE**2, channels, 3, padding=1)
        self.places = nn.Parameter(torch.zeros(channels, side, side))  # where in its patch a pixel lies
        self.blocks = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(blocks))
        self.last = nn.Conv2d(channels, image_channels * _STRIDE**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    @property
    def reach(self) -> int:
        """Pixels to each side that a pixel depends on."""
        return _STRIDE * (len(self.blocks) + 3) - 1

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """What to add to a decoded image `(B, C, H, W)` whose sides F divides; same shape.

        Image by image: convolutions of a batch may sum in another order, and the pixels of an image must not depend on
        the other images of its batch.
        """
        return self._correction(image) if len(image) == 1 else torch.cat([self._correction(x) for x in image.split(1)])

    def _correction(self, image: torch.Tensor) -> torch.Tensor:
        # channels_last and sums in place: half the time on a CPU. Gradients need what a sum in place overwrites.
        in_place = not torch.is_grad_enabled()
        stacked = F.pixel_unshuffle(image, _STRIDE).contiguous(memory_format=torch.channels_last)
        x = self.first(stacked)  # (1, channels, H / 2, W / 2)
        side = self.places.shape[1]
        if in_place:
            x.unflatten(3, (-1, side)).unflatten(2, (-1, side)).add_(self.places[None, :, None, :, None])
        else:
            x = x + self.places.repeat(1, x.shape[2] // side, x.shape[3] // side)
        x = F.relu(x, inplace=in_place)
        for block in self.blocks:
            change = F.relu(block(x), inplace=in_place)
            x = x.add_(change) if in_place else x + change
        return F.pixel_shuffle(self.last(x), _STRIDE)
