"""MDSI (Ziaei Nafchi, Shahkolaei, Hedjam, Cheriet 2016, arXiv 1608.07433): how unevenly gradients and colors deviate.

Sum combination, q = o = 1/4. As in the authors' code, the image is averaged down to about 256 pixels, filters meet zeros
outside of it, and the root of a negative similarity is complex. Computed in float64, since the roots magnify small errors.
"""

import torch
import torch.nn.functional as F

from pqdiff.metrics.image_mean import ImageMean, per_image

_C1, _C2, _C3, _ALPHA = 140.0, 55.0, 550.0, 0.6
_LEAST_SIDE = 3  # pixels of the gradient's filter
_LHM = ((0.2989, 0.5870, 0.1140), (0.30, 0.04, -0.35), (0.34, -0.60, 0.17))  # luminance, and two of chromaticity


def mdsi(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MDSI of each image, from 0 for equal images upwards.

    Args:
        preds: reconstructions `(B, 3, H, W)`, uint8 or floating point in [0, 1], with sides of at least 3.
        target: their images.

    Returns:
        `(B,)` float64.

    Raises:
        ValueError: if the images do not fit together or are too small.
    """
    return per_image(_mdsi, preds, target, "MDSI", _LEAST_SIDE)


class MDSI(ImageMean):
    """Mean of the MDSI of each image, at least 0. Lower is better. See `mdsi`."""

    higher_is_better = False
    least_side = _LEAST_SIDE
    values = staticmethod(mdsi)


def _mdsi(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    images = _shrink(torch.stack([x, y]).double() * 255)
    lhm = torch.einsum("kc,bchw->kbhw", images.new_tensor(_LHM), images)
    gradients = _gradient(lhm[0])  # (direction, image, h, w)
    edge_x, edge_y = torch.hypot(*gradients)
    edge_both = torch.hypot(*gradients.mean(1))  # of the mean of the images
    # Differences from 1, which are exactly 0 for equal images: 1 - GS of eq. 6, and 1 - CS of eq. 8.
    structure = _unlike(edge_x, edge_y, _C1) + _unlike(edge_x, edge_both, _C2) - _unlike(edge_y, edge_both, _C2)
    (h_x, h_y), (m_x, m_y) = lhm[1:]
    squares = h_x * h_x + h_y * h_y + m_x * m_x + m_y * m_y
    color = ((h_x - h_y).square() + (m_x - m_y).square()) / (squares + _C3)
    similarity = 1 - _ALPHA * structure - (1 - _ALPHA) * color
    root = similarity.abs() ** 0.25
    diagonal = root * 0.5**0.5  # the fourth root of -1 is (1 + i) / sqrt 2
    real, imaginary = torch.where(similarity < 0, diagonal, root), torch.where(similarity < 0, diagonal, 0.0)
    return torch.hypot(real - real.mean(), imaginary - imaginary.mean()).mean() ** 0.25


def _shrink(images: torch.Tensor) -> torch.Tensor:
    """Means of blocks, so many pixels wide as the shorter side has times 256, as the authors' code places them."""
    size = max(1, (min(images.shape[2:]) + 128) // 256)
    before = (size - 1) // 2
    after = [-(-side // size) * size - side - before for side in images.shape[2:]]  # below 0: what is left over
    return F.avg_pool2d(F.pad(images, (before, after[1], before, after[0])), size)


def _gradient(gray: torch.Tensor) -> torch.Tensor:
    """Prewitt gradients of images (B, h, w) on both axes: (2, B, h, w)."""
    wide = F.pad(gray, (1, 1, 1, 1))
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    columns = wide[..., :-2] + wide[..., 1:-1] + wide[..., 2:]
    return torch.stack([rows[..., 2:] - rows[..., :-2], columns[:, 2:] - columns[:, :-2]]) / 3


def _unlike(a: torch.Tensor, b: torch.Tensor, constant: float) -> torch.Tensor:
    """1 - (2 a b + C) / (a^2 + b^2 + C)."""
    return (a - b).square() / (a * a + b * b + constant)
