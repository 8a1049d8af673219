"""VIF in the pixel domain (Sheikh and Bovik 2006): the part of the image's information that is in the reconstruction.

The numbers are those of `torchmetrics.image.VisualInformationFidelity` on a range of 255. They take less time, since
windows of up to 17 x 17 weights are separable. Computed in float64: a variance is a difference of large numbers.
"""

import torch

from pqdiff.filters import blur, gaussian
from pqdiff.metrics.image_mean import ImageMean, per_image

_NOISE = 2.0  # variance of the eye's noise, for values up to 255
_EPSILON = 1e-10
_LEAST_SIDE = 41  # the last of the four windows fits in


def vif(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """VIF of each image, mean over its channels: 1 for equal images, 0 for no information, above 1 with more contrast.

    A channel of one color has no information that could be lost, and counts as 1.

    Args:
        preds: reconstructions `(B, 3, H, W)`, uint8 or floating point in [0, 1], with sides of at least 41.
        target: their images.

    Returns:
        `(B,)` float64.

    Raises:
        ValueError: if the images do not fit together or are too small.
    """
    return per_image(_vif, preds, target, "VIF", _LEAST_SIDE)


class VIF(ImageMean):
    """Mean of the VIF of each image, mostly in [0, 1]. Higher is better. See `vif`."""

    least_side = _LEAST_SIDE
    values = staticmethod(vif)


def _vif(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    flat = y.amax((1, 2)) == y.amin((1, 2))
    x, y = x.double() * 255, y.double() * 255
    kept = total = 0.0
    for size in (17, 9, 5, 3):
        window = gaussian(size, size / 5)
        if size < 17:
            x, y = (blur(image, window)[:, ::2, ::2] for image in (x, y))
        mean_x, mean_y, var_x, var_y, covariance = blur(torch.cat([x, y, x * x, y * y, x * y]), window).chunk(5)
        var_x = (var_x - mean_x * mean_x).clamp(min=0)
        var_y = (var_y - mean_y * mean_y).clamp(min=0)
        covariance = covariance - mean_x * mean_y
        gain = covariance / (var_y + _EPSILON)
        lost = (var_x < _EPSILON) | (var_y < _EPSILON) | (gain < 0)
        gain = gain.masked_fill(lost, 0)
        rest = (var_x - gain * covariance).clamp(min=_EPSILON)
        kept = kept + torch.log1p(gain * gain * var_y / (rest + _NOISE)).sum((1, 2))
        total = total + torch.log1p(var_y.masked_fill(var_y < _EPSILON, 0) / _NOISE).sum((1, 2))
    return torch.where(flat, 1.0, kept / total).mean()
