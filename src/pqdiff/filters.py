"""Gaussian windows over images, which several metrics look through."""

import torch

_STRIP = 2**18  # values that are blurred at once: what a processor's cache holds


def gaussian(size: int, sigma: float) -> list[float]:
    """Weights of a Gaussian of standard deviation `sigma` at `size` places around its center. Their sum is 1."""
    weights = torch.exp(-(torch.arange(size, dtype=torch.float64) - (size - 1) / 2).square() / (2 * sigma**2))
    return (weights / weights.sum()).tolist()


def blur(planes: torch.Tensor, weights: list[float]) -> torch.Tensor:
    """Planes `(N, H, W)` through a separable window of k weights, where it lies inside: `(N, H - k + 1, W - k + 1)`.

    Sums of shifted planes are faster than convolutions of one channel, above all in float64.
    """
    count, height, width = planes.shape
    rows, columns = (side - len(weights) + 1 for side in (height, width))
    step = max(1, _STRIP // (count * width))
    strips = []
    for top in range(0, rows, step):
        tall = _shifted_sum(planes[:, top : top + step + len(weights) - 1], 1, min(step, rows - top), weights)
        strips.append(_shifted_sum(tall, 2, columns, weights))
    return torch.cat(strips, dim=1)


def _shifted_sum(planes: torch.Tensor, dim: int, length: int, weights: list[float]) -> torch.Tensor:
    total = planes.narrow(dim, 0, length) * weights[0]
    for offset, weight in enumerate(weights[1:], start=1):
        total.add_(planes.narrow(dim, offset, length), alpha=weight)
    return total
