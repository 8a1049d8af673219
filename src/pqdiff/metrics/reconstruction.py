"""How close reconstructions are to their images, pixel by pixel.

There are two kinds of PSNR, so a table must say which one it shows: that of the data set is never above the mean of
those of the images (Jensen's inequality).
"""

import math
from collections.abc import Callable

import torch
from torchmetrics import Metric

from pqdiff.filters import blur, gaussian
from pqdiff.metrics.image_mean import ImageMean, per_image

_IDENTICAL_DB = 100.0  # PSNR of an image that is reproduced exactly, because infinity would make the mean infinite


class DatasetPSNR(Metric):
    """10 log10(1 / MSE) in dB, with one MSE over all pixels of all images: the paper's PSNR. Higher is better."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("squared_error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add reconstructions and images of the same shape `(B, C, H, W)`."""
        errors = _image_mse(preds, target)
        self.squared_error += errors.sum() * preds[0].numel()
        self.count += preds.numel()

    def compute(self) -> torch.Tensor:
        """PSNR in dB, infinite if all images are reproduced exactly."""
        return -10 * torch.log10(self.squared_error / self.count)


class ImagePSNR(ImageMean):
    """Mean of the PSNR of each image, in dB. An image that is reproduced exactly counts as 100 dB. Higher is better."""

    @staticmethod
    def values(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """PSNR of images `(B, C, H, W)` in dB, at most 100: `(B,)`."""
        return (-10 * torch.log10(_image_mse(preds, target))).clamp(max=_IDENTICAL_DB)


class ImageSSIM(ImageMean):
    """Mean of the structural similarity (Wang et al. 2004) of each image, in [-1, 1]. Higher is better.

    The window is Gaussian, 11 pixels wide, with standard deviation 1.5; K1 = 0.01 and K2 = 0.03. The similarity is
    computed per channel at all places where the window is inside the image. An image is processed in strips, which bounds
    the memory.
    """

    least_side = 11

    @staticmethod
    def values(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """SSIM of images `(B, C, H, W)` with sides of at least 11: `(B,)`.

        Raises:
            ValueError: if shapes or dtypes differ, or an image is smaller than the window.
        """
        return per_image(_ssim, preds, target, "SSIM", ImageSSIM.least_side, channels=None)


class ImageDistance(ImageMean):
    """Mean of a perceptual distance of each image, such as LPIPS. Lower is better.

    Args:
        network: distances `(B,)` of two batches of images `(B, 3, H, W)` in [-1, 1].
        kwargs: arguments of `ImageMean`.
    """

    higher_is_better = False

    def __init__(self, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **kwargs):
        super().__init__(**kwargs)
        self._network = (network,)  # in a tuple, so that a network's weights do not become a part of the metric

    @torch.no_grad()
    def values(self, preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Distances `(B,)` of images `(B, 3, H, W)`."""
        network = self._network[0]
        return per_image(lambda x, y: network(x[None] * 2 - 1, y[None] * 2 - 1)[0], preds, target, "it", channels=None)


def _ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean SSIM of two images (C, H, W), in strips."""
    rows, columns = (side - ImageSSIM.least_side + 1 for side in x.shape[1:])
    step = max(1, 2**20 // x.shape[2])
    strips = [slice(top, min(top + step, rows) + ImageSSIM.least_side - 1) for top in range(0, rows, step)]
    sums = [_ssim_map(x[:, strip], y[:, strip]).sum(dtype=torch.float64) for strip in strips]
    return torch.stack(sums).sum() / (x.shape[0] * rows * columns)


def _ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM of images (C, H, W) in [0, 1] at every place of the window: (C, H - 10, W - 10)."""
    blurred = blur(torch.cat([x, y, x * x + y * y, x * y]), gaussian(ImageSSIM.least_side, 1.5))
    mean_x, mean_y, squares, product = blurred.chunk(4)
    mean_squares = mean_x * mean_x + mean_y * mean_y
    variances, covariance = squares - mean_squares, product - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return likeness / ((mean_squares + c1) * (variances + c2))


def _image_mse(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image on the scale [0, 1]: (B,) float64."""
    return per_image(lambda x, y: (x - y).square_().mean(dtype=torch.float64), preds, target, "PSNR", channels=None)


def as_number(value: torch.Tensor) -> float | None:
    """A metric as a number that JSON can hold: None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
