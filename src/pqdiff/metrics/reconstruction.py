"""How close reconstructions are to their images.

Images are `(B, C, H, W)`: uint8, or floating point in [0, 1]; other types and ranges are a ValueError, and NaN gives NaN.
There are two kinds of PSNR, so a table must say which one it shows: that of the data set is never above the mean of
those of the images (Jensen's inequality).
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torchmetrics import Metric

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


class ImagePSNR(Metric):
    """Mean of the PSNR of each image, in dB. An image that is reproduced exactly counts as 100 dB. Higher is better."""

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add reconstructions and images of the same shape `(B, C, H, W)`."""
        decibels = -10 * torch.log10(_image_mse(preds, target))
        self.total += decibels.clamp(max=_IDENTICAL_DB).sum()
        self.count += len(preds)

    def compute(self) -> torch.Tensor:
        """Mean PSNR in dB."""
        return self.total / self.count


class ImageSSIM(Metric):
    """Mean of the structural similarity (Wang et al. 2004) of each image, in [-1, 1]. Higher is better.

    The window is Gaussian, 11 pixels wide, with standard deviation 1.5; K1 = 0.01 and K2 = 0.03. The similarity is
    computed per channel at all places where the window is inside the image. An image is processed in strips, so that
    memory does not grow with its height.
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
        """Add reconstructions and images of the same shape `(B, C, H, W)` with sides of at least 11.

        Raises:
            ValueError: if shapes or dtypes differ, or an image is smaller than the window.
        """
        _check(preds, target)
        if min(preds.shape[2:]) < self.window:
            raise ValueError(
                f"preds {tuple(preds.shape[2:])} must have sides of at least {self.window} pixels for SSIM"
            )
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


class ImageDistance(Metric):
    """Mean of a perceptual distance of each image, such as LPIPS. Lower is better.

    Args:
        network: distances `(B,)` of two batches of images `(B, 3, H, W)` in [-1, 1].
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], **kwargs):
        super().__init__(**kwargs)
        self._network = (network,)  # in a tuple, so that a network's weights do not become a part of the metric
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, preds: torch.Tensor, target: torch.Tensor) -> None:
        """Add reconstructions and images of the same shape `(B, 3, H, W)`."""
        _check(preds, target)
        with torch.no_grad():
            distances = self._network[0](_as_float(preds) * 2 - 1, _as_float(target) * 2 - 1)
        self.total += distances.sum(dtype=torch.float64)
        self.count += len(preds)

    def compute(self) -> torch.Tensor:
        """Mean distance."""
        return self.total / self.count


def _ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM of images (C, H, W) in [0, 1] at every place of the window: (C, H - 10, W - 10)."""
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


def as_number(value: torch.Tensor) -> float | None:
    """A metric as a number that JSON can hold: None for NaN and infinity."""
    number = float(value)
    return number if math.isfinite(number) else None
