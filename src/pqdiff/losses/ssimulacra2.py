"""SSIMULACRA2 as a loss: it needs no network, and what it teaches can be measured by other metrics.

It is the metric of `metrics/ssimulacra2.py`, written for gradients: that one overwrites what it no longer needs. A model
that is trained with it has a higher SSIMULACRA2 for that reason: other numbers must say whether its images are better.
"""

import torch
from torch import nn

from pqdiff import ssimulacra2_formula as formula
from pqdiff.filters import blur, gaussian

_WINDOW = gaussian(*formula.WINDOW)
_LEAST_DISTANCE = 1e-6  # its power has an infinite gradient at 0


class SSIMULACRA2Loss(nn.Module):
    """(100 - SSIMULACRA2) / 100: 0 for equal images, differentiable in both.

    It computes in fp32, also under autocast. Crops below 225 px have fewer scales than whole images.
    """

    name = "ssimulacra2_loss"

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Losses `(B,)` in fp32 of images and others `(B, 3, H, W)` in [-1, 1], which is what they are cut to.

        Raises:
            ValueError: if the shapes differ, are not of this form, or a side is below 8.
        """
        if (
            images.shape != others.shape
            or images.ndim != 4
            or images.shape[1] != 3
            or min(images.shape[2:]) < formula.LEAST_SIDE
        ):
            raise ValueError(
                f"images and others must both be (B, 3, H, W) with sides of at least {formula.LEAST_SIDE}, got "
                f"{tuple(images.shape)} and {tuple(others.shape)}"
            )
        with torch.autocast(images.device.type, enabled=False):
            return torch.stack([_loss(*pair) for pair in zip(others.float(), images.float(), strict=True)])


def _loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    pair = [_linear((image / 2 + 0.5).clamp(0, 1)) for image in (x, y)]
    error = x.new_zeros(())
    for scale, weights in enumerate(formula.weights_of_scales(min(x.shape[1:]))):
        if scale:
            pair = [formula.halve(image) for image in pair]
        error = error + (_norms(*pair) * weights.to(error)).sum()
    distance = formula.distance_of(error)
    return torch.where(distance > _LEAST_DISTANCE, distance.clamp(min=_LEAST_DISTANCE) ** formula.EXPONENT, 0) / 10


def _linear(srgb: torch.Tensor) -> torch.Tensor:
    power = ((srgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4
    return power + (srgb.clamp(max=0.04045) - 0.04045) / 12.92


def _norms(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Means of the errors of a reconstruction and its image (3, H, W), linear RGB, and their 4-norms: (3, 2, 3)."""
    x, y = _seen(x), _seen(y)
    mean_x, mean_y, squares, difference = blur(torch.cat([x, y, x**2 + y**2, (x - y) ** 2]), _WINDOW).split(3)
    bias = (mean_x - mean_y) ** 2
    variances = squares - mean_x**2 - mean_y**2 + formula.C2
    structure = (difference - bias) / variances * (1 - bias) + bias
    inside = slice(formula.MARGIN, -formula.MARGIN)
    edge_x, edge_y = ((mean - image[:, inside, inside]).abs() for mean, image in ((mean_x, x), (mean_y, y)))
    change = (edge_x - edge_y) / (edge_y + 1)  # above 0: artifacts; below 0: lost detail
    errors = torch.stack([structure, change, -change]).clamp(min=0)  # (3 kinds, 3 channels, H, W)
    means, powers = errors.mean((2, 3)), (errors**4).mean((2, 3))
    roots = torch.where(powers > 0, torch.where(powers > 0, powers, 1) ** 0.25, 0)
    return torch.stack([means.T, roots.T], dim=1)


def _seen(linear: torch.Tensor) -> torch.Tensor:
    """X, Y and B - Y of an image (3, H, W) in linear RGB: mirrored above and below, and zeros at the sides."""
    eye = formula.Eye(linear)
    roots = torch.addmm(eye.bias, eye.cones, linear.flatten(1)).clamp(min=formula.BIAS / 2) ** (1 / 3)
    return formula.framed(torch.addmm(eye.offsets, eye.xyb, roots).view_as(linear))
