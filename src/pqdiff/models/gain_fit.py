"""The closed form with gains: what `closed_form.py` does, with one subspace for how strong a patch is.

Gain-shape quantization (Gersho and Gray 1992, chapter 12) of the principal components of patches: logarithms of the
energies of bands of components, their own principal components as gains, k-means of those; then components divided by
the scales that the quantized gains stand for, dealt out to the other subspaces, and k-means weighted by the scales'
squares, so that what it minimizes is still the error of pixels.
"""

import itertools
import math
from collections.abc import Callable

import torch

from ..quantizers.nearest import nearest_codewords
from .kmeans import fit_codebooks
from .local_gains import LocalGains

STEADY = 3  # leading components are the patch's mean color: how strong they are says nothing about its detail
_ROUNDING = (2 / 255) ** 2 / 12  # variance of rounding to 8 bits, in [-1, 1]: energies below it are nothing
_OUTLIERS = 0.999  # quantile at which weights of patches are cut


@torch.no_grad()
def fit_gains(
    components: torch.Tensor,
    variances: torch.Tensor,
    bands: int,
    codewords: int,
    gains: int,
    generator: torch.Generator,
) -> tuple[LocalGains, torch.Tensor]:
    """Gains for principal components, and their codebook.

    Args:
        components: `(N, M)` fp32, descending in variance.
        variances: `(M,)` of the components.
        bands: number of groups of components of similar variance to measure the energies of.
        codewords: size of the codebook.
        gains: coordinates of a codeword.
        generator: source of all randomness.

    Returns:
        The module, whose `deviation` is still to be set, and codewords `(1, codewords, gains)`.

    Raises:
        ValueError: if there are fewer components than bands need.
    """
    count = components.shape[1]
    edges = _band_edges(count, bands)
    module = LocalGains(count, gains, bands)
    for layer in (module.energy, module.measurement, module.profile):
        layer.weight.zero_()
        layer.bias.zero_()
    energy = module.energy.weight[:, :, 0, 0]  # (bands, M)
    sizes = torch.tensor([stop - start for start, stop in edges], dtype=torch.float32)
    for band, (start, stop) in enumerate(edges):
        energy[band, start:stop] = 1 / (variances[start:stop] * (stop - start))
        module.energy.bias[band] = (_ROUNDING / variances[start:stop]).mean()
    logs = torch.cat([(part.square() @ energy.T + module.energy.bias).log() for part in components.split(8192)])
    mean = logs.mean(dim=0)
    # Patches count by their energy and bands by their size: errors of strong coefficients cost most.
    importance = (sizes / sizes.sum()).sqrt()
    weights = (logs @ importance.square()).div(2).exp()
    weights = weights.clamp_max(weights.kthvalue(max(1, int(_OUTLIERS * len(weights)))).values)
    centered = (logs - mean) / 2 * importance
    _, directions = torch.linalg.eigh((centered * weights[:, None]).T @ centered)
    directions = directions.flip(1)[:, :gains]  # (bands, gains)
    module.measurement.weight.copy_((directions.T * importance / 2)[:, :, None, None])
    module.measurement.bias.copy_(-(mean * importance / 2) @ directions)
    for band, (start, stop) in enumerate(edges):
        module.profile.weight[start:stop] = (directions[band] / importance[band])[:, None, None]
    vectors = (centered @ directions).T[None].contiguous()  # (1, gains, N)
    codebook = fit_codebooks(vectors, codewords, generator, weights=weights[None])
    # Scales have a mean square of 1, so that relative components are as strong as components are.
    index = nearest_codewords(vectors[None], codebook)[0, 0]
    scales = 2 * codebook[0][index] @ module.profile.weight[:, :, 0, 0].T  # (N, M)
    module.profile.bias.copy_(-scales.exp().mean(dim=0).log() / 2)
    return module, codebook


@torch.no_grad()
def fit_relative(
    components: torch.Tensor,
    variances: torch.Tensor,
    subspaces: int,
    codewords: int,
    gain_bands: int,
    groups: Callable[[list[float], int], torch.Tensor],
    generator: torch.Generator,
    on_step: Callable[[], None] = lambda: None,
) -> tuple[LocalGains, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gains, and codebooks of components relative to them.

    Args:
        components: `(N, M)` fp32, descending in variance, where M is a multiple of `subspaces - 1`.
        variances: `(M,)` of the components.
        subspaces: number of subspaces S, with that of the gains.
        codewords: size of a codebook K.
        gain_bands: see `fit_gains`.
        groups: deals variances out to subspaces, as `balanced_groups` does.
        generator: source of all randomness.
        on_step: called after each iteration of k-means.

    Returns:
        Module for components in the order of the subspaces; that order `(S - 1, M / (S - 1))`; codebooks
        `(S, K, M / (S - 1))`; and vectors `(S, M / (S - 1), N)` that they stand for.
    """
    width = components.shape[1] // (subspaces - 1)
    module, gain_codebook = fit_gains(components, variances, gain_bands, codewords, width, generator)
    gains = torch.cat([module.measure(part.T[None, :, :, None])[0, :, :, 0] for part in components.split(8192)], dim=1)
    index = nearest_codewords(gains[None, None].contiguous(), gain_codebook)[0, 0]
    table = module.log_scales(gain_codebook[0].T[None, :, :, None], gain_codebook[0])[0, :, :, 0]  # (M, K)
    squares = (2 * table).exp()
    relative = torch.empty(components.shape[1], len(components))
    for row in range(len(relative)):
        relative[row] = components[:, row] * (-table[row])[index].exp()
    strengths = (relative.square() * squares[:, index]).mean(dim=1)
    descending = strengths.argsort(descending=True)
    # Shifted so that all logarithms are positive: else the fullest group would look like the emptiest.
    shares = strengths[descending] / strengths.min() * math.e
    order = descending[groups(shares.tolist(), subspaces - 1)]  # (S - 1, width)
    vectors = relative[order.flatten()].unflatten(0, order.shape)
    weights = torch.stack([squares[members].mean(dim=0)[index] for members in order])  # (S - 1, N)
    codebooks = fit_codebooks(vectors, codewords, generator, on_step=on_step, weights=weights)
    module.deviation.copy_(relative.square().mean(dim=1).sqrt())
    return module, order, torch.cat([gain_codebook, codebooks]), torch.cat([gains[None], vectors])


@torch.no_grad()
def in_order(module: LocalGains, order: torch.Tensor) -> LocalGains:
    """The same gains for the components `order` (all of them, once each) of those the module is for."""
    _, gains, *_ = module.profile.weight.shape
    result = LocalGains(len(order), gains, module.energy.out_channels)
    result.load_state_dict(module.state_dict())
    result.energy.weight.copy_(module.energy.weight[:, order])
    result.profile.weight.copy_(module.profile.weight[order])
    result.profile.bias.copy_(module.profile.bias[order])
    result.deviation.copy_(module.deviation[order])
    return result


def _band_edges(count: int, bands: int) -> list[tuple[int, int]]:
    """Bands `[start, stop)` of the components after the steady ones, about as wide in the logarithm of the position."""
    if count - STEADY < bands:
        raise ValueError(f"gain_bands ({bands}) must be at most {count - STEADY}, the components that have gains")
    edges = [STEADY]
    for band in range(1, bands + 1):
        target = round(math.exp(math.log(STEADY) + (math.log(count) - math.log(STEADY)) * band / bands))
        edges.append(min(max(edges[-1] + 1, target), count - (bands - band)))
    return list(itertools.pairwise(edges))
