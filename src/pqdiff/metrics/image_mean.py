"""Means over images: what every metric shares that gives each image a number of its own.

Images are `(B, C, H, W)`: uint8, or floating point in [0, 1]; other types and ranges are a ValueError, and NaN gives NaN.
Each image is measured alone. So memory does not grow with the batch, and the batch size never changes a number.
"""

from collections.abc import Callable

import torch
from torchmetrics import Metric


class ImageMean(Metric):
    """Mean of a number of each image, summed in float64. A subclass has `values`: `(B,)` of two batches of images.

    Attributes:
        least_side: sides of images that `values` can measure have at least so many pixels.

    Args:
        strict: images that are too small are a ValueError. If False, they make the mean NaN.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    least_side = 1
    values: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def __init__(self, strict: bool = True, **kwargs):
        super().__init__(**kwargs)
        self.strict = strict
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add reconstructions and images of the same shape `(B, C, H, W)`."""
        check_images(preds, target)
        if not self.strict and min(preds.shape[2:]) < self.least_side:
            self.total += torch.nan
        else:
            self.total += self.values(preds, target).sum(dtype=torch.float64)
        self.count += len(preds)

    def compute(self) -> torch.Tensor:
        """Mean over the images."""
        return self.total / self.count


def per_image(
    measure: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    preds: torch.Tensor,
    target: torch.Tensor,
    name: str,
    least_side: int = 1,
    channels: int | None = 3,
) -> torch.Tensor:
    """Numbers `(B,)` of pairs of images, each measured alone.

    Args:
        measure: number `()` of a reconstruction and its image `(C, H, W)`, float32 in [0, 1].
        preds: reconstructions `(B, C, H, W)`.
        target: their images.
        name: that of the metric, for errors.
        least_side: least height and width in pixels.
        channels: so many are needed; None for any number.

    Raises:
        ValueError: if the images do not fit together, are too small, or have other channels.
    """
    check_images(preds, target)
    if channels and preds.shape[1] != channels:
        raise ValueError(f"preds {tuple(preds.shape)} must have {channels} channels for {name}: repeat a gray one")
    if min(preds.shape[2:]) < least_side:
        raise ValueError(f"preds {tuple(preds.shape[2:])} must have sides of at least {least_side} pixels for {name}")
    return torch.stack([measure(as_float(x), as_float(y)) for x, y in zip(preds, target, strict=True)])


def as_float(images: torch.Tensor) -> torch.Tensor:
    """Images as float32 in [0, 1]."""
    return images.float() / 255 if images.dtype == torch.uint8 else images.float()


def check_images(preds: torch.Tensor, target: torch.Tensor) -> None:
    """Refuse two batches of images that cannot be compared.

    Raises:
        ValueError: if shapes or dtypes differ, or values are not those of images.
    """
    if preds.shape != target.shape or preds.ndim != 4 or not preds.numel():
        raise ValueError(
            f"preds {tuple(preds.shape)} and target {tuple(target.shape)} must have the same (B, C, H, W)"
        )
    if (preds.dtype == torch.uint8) != (target.dtype == torch.uint8):
        raise ValueError(f"preds ({preds.dtype}) and target ({target.dtype}) must both be uint8, or neither")
    for name, images in (("preds", preds), ("target", target)):
        if images.dtype == torch.uint8:
            continue
        if not images.is_floating_point():
            raise ValueError(f"{name} ({images.dtype}) must be uint8 from 0 to 255, or floating point in [0, 1]")
        low, high = images.amin().item(), images.amax().item()
        if low < 0 or high > 1:  # NaN passes, and the metric is NaN
            raise ValueError(f"{name} with values from {low:g} to {high:g} must be floating point in [0, 1], or uint8")
