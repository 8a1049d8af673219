"""How near a reconstruction is to its image, pixel by pixel.

Images are `(B, C, H, W)`: uint8, or floating point in [0, 1]. Say which PSNR a table shows: the data set's is below
the mean of the images' (Jensen).
"""

import math

import torch
import torch.nn.functional as F
from torchmetrics import Metric

_IDENTICAL_DB = 100.0  # what an image counts for that is reproduced exactly: infinity would swallow the mean


class DatasetPSNR(Metric):
    """10 log10(1 / MSE) with one MSE over all pixels of all images, in dB: the paper's PSNR. Higher is better."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("squared_error", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take in reconstructions and images of the same shape `(B, C, H, W)`."""
        errors = _image_mse(preds, target)
        self.squared_error += errors.sum() * preds[0].numel()
        self.count += preds.numel()

    def compute(self) -> torch.Tensor:
        """PSNR in dB, infinite if everything is identical."""
        return -10 * torch.log10(self.squared_error / self.count)


class ImagePSNR(Metric):
    """Mean over the images of each one's PSNR, in dB; an identical image counts as 100 dB. Higher is better."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take in reconstructions and images of the same shape `(B, C, H, W)`."""
        decibels = -10 * torch.log10(_image_mse(preds, target))
        self.total += decibels.clamp(max=_IDENTICAL_DB).sum()
        self.count += len(preds)

    def compute(self) -> torch.Tensor:
        """Mean PSNR in dB."""
        return self.total / self.count


class ImageSSIM(Metric):
    """Mean over the images of structural similarity (Wang et al. 2004), in [-1, 1]. Higher is better.

    Gaussian window of 11 pixels and standard deviation 1.5, K1 = 0.01, K2 = 0.03, per channel, where the window fits
    in the image. Works in strips, so that memory does not grow with the height of an image.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False
    window = 11

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Take in reconstructions and images of the same shape `(B, C, H, W)`, sides at least 11.

        Raises:
            ValueError: if shapes or dtypes differ, or an image is smaller than the window.
        """
        _check(preds, target)
        if min(preds.shape[2:]) < self.window:
            raise ValueError(f"SSIM needs sides of at least {self.window} pixels, got {tuple(preds.shape[2:])}")
        for x, y in zip(preds, target, strict=True):
            rows = x.shape[1] - self.window + 1
            strip = max(1, 2**20 // x.shape[2])
            sums = [
                _ssim_map(*(_as_float(image[:, r : min(r + strip, rows) + self.window - 1]) for image in (x, y))).sum(
                    dtype=torch.float64
                )
                for r in range(0, rows, strip)
            ]
            self.total += torch.stack(sums).sum() / (x.shape[0] * rows * (x.shape[2] - self.window + 1))
        self.count += len(preds)

    def compute(self) -> torch.Tensor:
        """Mean SSIM."""
        return self.total / self.count


def _ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM of images (C, H, W) in [0, 1] at each place of the window: (C, H - 10, W - 10)."""
    offsets = torch.arange(ImageSSIM.window, dtype=x.dtype, device=x.device) - ImageSSIM.window // 2
    kernel = torch.exp(-offsets.square() / (2 * 1.5**2))
    kernel = (kernel / kernel.sum()).view(1, 1, -1, 1)

    def blur(image: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.conv2d(image[:, None], kernel), kernel.transpose(2, 3))[:, 0]

    mean_x, mean_y = blur(x), blur(y)
    variances = blur(x * x) - mean_x * mean_x + blur(y * y) - mean_y * mean_y
    covariance = blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    return likeness / ((mean_x * mean_x + mean_y * mean_y + c1) * (variances + c2))


def _image_mse(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Mean squared error of each image on the scale [0, 1]: (B,) float64."""
    _check(preds, target)
    errors = [
        (_as_float(x) - _as_float(y)).square_().mean(dtype=torch.float64) for x, y in zip(preds, target, strict=True)
    ]
    return torch.stack(errors)


def _as_float(image: torch.Tensor) -> torch.Tensor:
    return image.float() / 255 if image.dtype == torch.uint8 else image.float()


def _check(preds: torch.Tensor, target: torch.Tensor) -> None:
    if preds.shape != target.shape or preds.ndim != 4 or not preds.numel():
        raise ValueError(f"preds {tuple(preds.shape)} and target {tuple(target.shape)} must be the same (B, C, H, W)")
    if (preds.dtype == torch.uint8) != (target.dtype == torch.uint8):
        raise ValueError(f"preds ({preds.dtype}) and target ({target.dtype}) must both be uint8, or neither")


def as_number(value: torch.Tensor) -> float | None:
    """A metric as JSON can hold it: None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
