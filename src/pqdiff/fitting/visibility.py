"""How much errors of each color and frequency are seen, for fits that weigh them by it.

The squared error counts all alike. SSIMULACRA2 falls thirty times as fast for errors of brightness that are smooth as for
those that are fine, and a hundred times for blue against yellow. `python -m benchmarks.visibility` measures it: the slopes
below are the geometric means for the shipped adaptive F16 and F32 tokenizers, which agree up to one factor.
"""

import math

import torch

# Cycles per pixel, and what a squared error of this frequency costs against one of the first in brightness.
FREQUENCIES = (0.012, 0.025, 0.041, 0.056, 0.078, 0.11, 0.156, 0.22, 0.30, 0.39, 0.55)
_SLOPES = (
    (1.0, 0.95, 0.785, 0.605, 0.51, 0.31, 0.177, 0.088, 0.063, 0.053, 0.037),  # brightness
    (0.89, 0.475, 0.243, 0.129, 0.087, 0.041, 0.029, 0.022, 0.017, 0.0125, 0.0083),  # blue against yellow
    (0.243, 0.228, 0.185, 0.138, 0.113, 0.070, 0.044, 0.0234, 0.015, 0.0112, 0.0075),  # red against green
)
_COLORS = ((0.299, 0.587, 0.114), (-0.169, -0.331, 0.5), (0.5, -0.419, -0.081))  # Y, Cb and Cr of ITU-R BT.601


def visible_weights(patch_size: int, exponent: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """A linear map of patches after which squared errors count as much as they are seen, and its inverse.

    Both are `(3 F^2, 3 F^2)`, float64, and apply to patches as columns (channel, row, column).

    Args:
        patch_size: side F in pixels.
        exponent: power of the slopes: 1 for what was measured, 0 for errors of Y, Cb and Cr that count alike.
    """
    colors, frequencies = color_axes(), cosines(patch_size)
    axes = torch.kron(colors, torch.kron(frequencies, frequencies))
    rows = torch.arange(patch_size, dtype=torch.float64) / (2 * patch_size)  # cycles per pixel
    radius = (rows[:, None].square() + rows.square()).sqrt().flatten()
    weights = torch.cat([slopes_at(radius, color) for color in range(3)]) ** (exponent / 2)
    return weights[:, None] * axes, torch.linalg.inv(axes) / weights


def color_axes() -> torch.Tensor:
    """Y, Cb and Cr as rows of unit length of RGB: (3, 3), float64."""
    return torch.nn.functional.normalize(torch.tensor(_COLORS, dtype=torch.float64), dim=1)


def cosines(size: int) -> torch.Tensor:
    """The orthonormal DCT-II of vectors of this size, one frequency a row: (size, size), float64."""
    places = torch.arange(size, dtype=torch.float64)
    table = ((places + 0.5) * places[:, None] * math.pi / size).cos() * math.sqrt(2 / size)
    table[0] /= math.sqrt(2)
    return table


def slopes_at(frequencies: torch.Tensor, color: int) -> torch.Tensor:
    """Slopes `(n,)` of a color at frequencies in cycles per pixel: lines between the logs of those that were measured."""
    known = torch.tensor(FREQUENCIES, dtype=torch.float64).log()
    slopes = torch.tensor(_SLOPES[color], dtype=torch.float64).log()
    place = frequencies.double().clamp(FREQUENCIES[0], FREQUENCIES[-1]).log()
    upper = torch.searchsorted(known, place).clamp(1, len(known) - 1)
    part = (place - known[upper - 1]) / (known[upper] - known[upper - 1])
    return torch.lerp(slopes[upper - 1], slopes[upper], part).exp()
