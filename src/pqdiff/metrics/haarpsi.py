"""HaarPSI (Reisenhofer, Bosse, Kutyniok, Wiegand 2018, arXiv 1607.06140): similarity of Haar coefficients, in color.

As in the authors' code, the image is halved first, filters meet zeros outside of the image, and I and Q are compared as
means of 2 x 2 pixels. Computed in float64.
"""

import torch
import torch.nn.functional as F

from pqdiff.metrics.image_mean import ImageMean, per_image

_C, _ALPHA = 30.0, 4.2
_LEAST_SIDE = 16  # the coarsest filter has 8 pixels of the halved image
_YIQ = ((0.299, 0.587, 0.114), (0.596, -0.274, -0.322), (0.211, -0.523, 0.312))


def haarpsi(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """HaarPSI of each image, from 0 to 1 for equal images.

    Args:
        preds: reconstructions `(B, 3, H, W)`, uint8 or floating point in [0, 1], with sides of at least 16.
        target: their images.

    Returns:
        `(B,)` float64.

    Raises:
        ValueError: if the images do not fit together or are too small.
    """
    return per_image(_haarpsi, preds, target, "HaarPSI", _LEAST_SIDE)


class HaarPSI(ImageMean):
    """Mean of the HaarPSI of each image, in [0, 1]. Higher is better. See `haarpsi`."""

    least_side = _LEAST_SIDE
    values = staticmethod(haarpsi)


def _haarpsi(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    images = torch.stack([x, y]).double() * 255
    images = F.pad(images, (0, images.shape[3] % 2, 0, images.shape[2] % 2))
    yiq = torch.einsum("kc,bchw->bkhw", images.new_tensor(_YIQ), F.avg_pool2d(images, 2))  # (2, 3, h, w)
    luma = [_haar(yiq[:, 0], size) for size in (2, 4, 8)]  # each (2 images, 2 directions, h, w)
    chroma = F.avg_pool2d(F.pad(yiq[:, 1:], (0, 1, 0, 1)), 2, stride=1).abs()
    similarity = torch.stack([*((_alike(luma[0]) + _alike(luma[1])) / 2), _alike(chroma).mean(0)])
    weights = luma[2].amax(0) + 1e-20  # equal weights, not 0 / 0, for black images
    weights = torch.stack([*weights, weights.mean(0)])
    mean = (torch.sigmoid(_ALPHA * similarity) * weights).sum() / weights.sum()
    return (torch.logit(mean) / _ALPHA).square()


def _haar(gray: torch.Tensor, size: int) -> torch.Tensor:
    """Magnitudes (B, 2, h, w) of the vertical and horizontal Haar coefficients of images (B, h, w)."""
    half = size // 2
    wide = F.pad(gray, (half - 1, half, half - 1, half))
    rows, columns = F.avg_pool2d(wide, (half, size), stride=1), F.avg_pool2d(wide, (size, half), stride=1)
    vertical, horizontal = rows[:, half:] - rows[:, :-half], columns[..., half:] - columns[..., :-half]
    return torch.stack([vertical, horizontal], dim=1).abs_() * half


def _alike(pair: torch.Tensor) -> torch.Tensor:
    """Eq. 6: similarity of the coefficients of two images."""
    a, b = pair
    return (2 * a * b + _C) / (a * a + b * b + _C)
