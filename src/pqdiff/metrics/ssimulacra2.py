"""SSIMULACRA2, version 2.1 (Jon Sneyers, Cloudinary 2023): errors of structure and edges, in color, at six scales.

The constants are those of https://github.com/cloudinary/ssimulacra2. The steps are those of the PyPI package `ssimulacra2`
0.3.0: its window has 11 weights and meets zeros left and right of the image, and the mirrored image above and below it,
where the original has a recursive filter and zeros all around. Errors are computed as differences, not as one minus a
similarity, so that float32 is enough.
"""

import math

import torch

from pqdiff import ssimulacra2_formula as formula
from pqdiff.filters import blur, gaussian
from pqdiff.metrics.image_mean import ImageMean, per_image

_WINDOW = gaussian(*formula.WINDOW)
_STRIP = 2**14  # pixels that are compared at once, so that all there is about them stays in the processor's cache


def ssimulacra2(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """SSIMULACRA2 of each image: 100 for equal ones, 90 visually lossless, 70 high, 50 medium, 30 low quality, or below 0.

    Images with a side below 225 have fewer than six scales. Their numbers are those that the reference gives, whose weights
    then belong to other scales; they cannot be compared with those of larger images.

    Args:
        preds: reconstructions `(B, 3, H, W)` in sRGB, uint8 or floating point in [0, 1], with sides of at least 8.
        target: their images.

    Returns:
        `(B,)` float64.

    Raises:
        ValueError: if the images do not fit together or are too small.
    """
    return per_image(_ssimulacra2, preds, target, "SSIMULACRA2", formula.LEAST_SIDE)


class SSIMULACRA2(ImageMean):
    """Mean of the SSIMULACRA2 of each image, at most 100. Higher is better. See `ssimulacra2`."""

    least_side = formula.LEAST_SIDE
    values = staticmethod(ssimulacra2)


def _ssimulacra2(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    images = _linear(x), _linear(y)  # always two calls: in one, equal images may differ in the last digit
    eye = formula.Eye(x)
    error = torch.zeros((), dtype=torch.float64, device=x.device)
    for scale, weights in enumerate(formula.weights_of_scales(min(x.shape[1:]))):
        if scale:
            images = [formula.halve(image) for image in images]
        error += _error(*(_seen(image, eye) for image in images), weights)
    return 100 - 10 * formula.distance_of(error).clamp(min=0) ** formula.EXPONENT


def _linear(srgb: torch.Tensor) -> torch.Tensor:
    """Linear RGB of sRGB: a line up to 0.04045, and from there a power, which logarithms give in half the time."""
    power = srgb.clamp(min=0.04045).add_(0.055).log_().mul_(2.4).add_(-2.4 * math.log(1.055)).exp_()
    return power.add_(srgb.clamp(max=0.04045).sub_(0.04045), alpha=1 / 12.92)


def _seen(linear: torch.Tensor, eye: formula.Eye) -> torch.Tensor:
    """X, Y and B - Y of an image (3, H, W) in linear RGB, mirrored above and below, between zeros at the sides.

    All in the range that errors are computed in: (3, H + 2 MARGIN, W + 2 MARGIN).
    """
    roots = torch.addmm(eye.bias, eye.cones, linear.flatten(1)).log_().div_(3).exp_()
    return formula.framed(torch.addmm(eye.offsets, eye.xyb, roots).view_as(linear))


def _error(x: torch.Tensor, y: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Weighted sum, float64, of all errors between what is seen of a reconstruction and of its image."""
    height, width = (side - 2 * formula.MARGIN for side in x.shape[1:])
    weighty = weights[:, :, 0].any(1).nonzero()[:, 0].tolist()
    channels = slice(weighty[0], weighty[-1] + 1)  # only there errors of structure have a weight
    step = max(1, _STRIP // width)
    strips = [slice(top, top + step + 2 * formula.MARGIN) for top in range(0, height, step)]
    norms = sum(_sums(x[:, strip], y[:, strip], channels) for strip in strips) / (height * width)
    norms[1] = norms[1] ** 0.25
    structure, artifacts, lost = weights[channels, :, 0], weights[:, :, 1], weights[:, :, 2]
    return (norms * torch.cat([structure, artifacts, lost]).T.to(norms)).sum()


def _sums(x: torch.Tensor, y: torch.Tensor, channels: slice) -> torch.Tensor:
    """Sums of the errors inside the margins and of their 4th powers, float64: (2, channels + 3 + 3)."""
    own_x, own_y = x[channels], y[channels]
    count = len(own_x)
    planes = torch.cat([x, y, own_x.square().add_(own_y.square()), (own_x - own_y).square_()])
    mean_x, mean_y, squares, difference = blur(planes, _WINDOW).split([3, 3, count, count])
    errors = torch.empty_like(planes[: count + 6, : mean_x.shape[1], : mean_x.shape[2]])
    bias = (mean_x[channels] - mean_y[channels]).square_()
    # 1 - (1 - bias) (2 covariance + C2) / (both variances + C2), with 2 covariance = both variances - that of x - y
    variances = squares.sub_(mean_x[channels].square()).sub_(mean_y[channels].square()).add_(formula.C2)
    torch.add(difference.sub_(bias).div_(variances).mul_(1 - bias), bias, out=errors[:count])
    inside = slice(formula.MARGIN, -formula.MARGIN)
    edge_x = mean_x.sub_(x[:, inside, inside]).abs_()
    edge_y = mean_y.sub_(y[:, inside, inside]).abs_()
    artifacts, lost = errors[count:].split(3)
    torch.div(edge_x.sub_(edge_y), edge_y.add_(1), out=artifacts)
    torch.neg(artifacts, out=lost)
    means = errors.clamp_(min=0).sum((1, 2))
    return torch.stack([means, errors.square_().square_().sum((1, 2))]).double()
