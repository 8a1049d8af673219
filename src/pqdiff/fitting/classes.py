"""Fit a `ClassifiedProductQuantizer`, classes of patches and their codebooks, without a gradient step.

Hard expectation-maximization, first of the bases (directions of texture, however strong it is: the angular Gaussian
mixture, Tyler 1987), then of the classes, then together with the codebooks: a patch belongs to the class that reconstructs
it best.
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch

from pqdiff.fitting.kmeans import fit_codebooks
from pqdiff.quantizers import ClassifiedProductQuantizer
from pqdiff.quantizers.search.classified import ClassLikelihoods, classify, rotate

_STEADY = 3  # leading components are the patch's mean color: it says nothing about the texture
_DIRECTIONS = 16  # components whose products tell textures apart at the start
_TEXTURE = 128  # components that bases are told apart by
_ROUNDS = {"bases": 12, "classes": 12, "codebooks": 2}
_PRIOR = 24  # patches' worth of what other classes of a basis say of a class
_SAMPLE = 40_000  # patches that tell bases apart
_CHUNK = 16_384


class FittedClasses(NamedTuple):
    """A quantizer without class codewords, and of the sample the tokens `(N,)` of the classes and the relative vectors
    `(S - 1, D, N)`."""

    quantizer: ClassifiedProductQuantizer
    tokens: torch.Tensor
    vectors: torch.Tensor


@torch.no_grad()
def fit_classes(
    components: torch.Tensor,
    model: ClassifiedProductQuantizer,
    groups: Callable[[list[float], int], torch.Tensor],
    generator: torch.Generator,
    on_step: Callable[[str], None] = lambda stage: None,
) -> FittedClasses:
    """Fit to the principal components of patches.

    Args:
        components: `(N, P)` fp32, centered.
        model: of the shape that is wanted; its weights are set.
        groups: deals variances out to subspaces, as `balanced_groups` does.
        generator: source of all randomness.
        on_step: told the stage before each of its rounds.
    """
    subspaces, codebook_size, bases = model.num_subspaces, model.codebook_size, model.bases
    distortion = _water_level(components, subspaces * math.log2(codebook_size))
    texture = _textures(components, bases, generator, on_step)
    levels = torch.ones(len(components))
    _fit_bases(model, components, texture, levels)
    members = _first_classes(model, components, texture, generator)
    for step in range(_ROUNDS["classes"]):
        on_step("classes")
        if step % 3 == 2:
            levels = _levels(model, members)
            _fit_bases(model, components, members // (codebook_size // bases), levels)
        _fit_scales(model, components, members, distortion)
        members = torch.cat([_likeliest(model, part) for part in components.split(_CHUNK)])
    for step in range(_ROUNDS["codebooks"]):
        on_step("codebooks")
        if step:
            _fit_scales(model, components, members, distortion)
        canonical = _strengths(model, components, members)  # (M,), mean squares
        descending = canonical.argsort(descending=True)
        # Shifted so that all logarithms are positive: else the fullest group would look like the emptiest.
        shares = canonical[descending] / canonical.min() * math.e
        order = descending[groups(shares.tolist(), subspaces - 1).flatten()]
        _reorder(model, order, canonical[order])
        codebooks, vectors = _fit_codebooks(model, components, members, subspaces - 1, codebook_size, generator)
        model.codebooks.copy_(codebooks)
        found = [_encode(model, part) for part in components.split(_CHUNK // 4)]
        members = torch.cat([classes for classes, _ in found])
        vectors = torch.cat([relative for _, relative in found], dim=2)
    return FittedClasses(model, members, vectors)


def class_codewords(classes: ClassifiedProductQuantizer, dim: int, deviation: float) -> torch.Tensor:
    """Codewords `(K, dim)` for the classes: on a grid, so that noise does not confuse them, where neighbors are alike.

    Args:
        classes: fitted.
        dim: coordinates of a codeword.
        deviation: standard deviation of each coordinate.
    """
    features = classes.log_scales.detach() - classes.log_scales.detach().mean(dim=0)
    _, _, directions = torch.linalg.svd(features, full_matrices=False)
    places = features @ directions[:dim].T  # (K, dim)
    result = torch.zeros(len(places), dim)
    _spread(places, torch.arange(len(places)), 0, result)
    return (result - result.mean(dim=0)) / result.std(dim=0).clamp_min(1e-6) * deviation


def _spread(places: torch.Tensor, rows: torch.Tensor, axis: int, result: torch.Tensor) -> None:
    """Put the places of `rows` on a grid: ranks along the axis, then along the next within each rank."""
    parts = math.ceil(len(rows) ** (1 / (places.shape[1] - axis)))
    size = math.ceil(len(rows) / parts)
    for rank, part in enumerate(rows[places[rows, axis].argsort()].split(size)):
        result[part, axis] = rank
        if axis + 1 < places.shape[1]:
            _spread(places, part, axis + 1, result)


def _water_level(components: torch.Tensor, bits: float) -> float:
    """Error per component of an ideal code of one Gaussian with so many bits (reverse water-filling)."""
    variances = components.square().mean(dim=0).double().clamp_min(1e-12)
    low, high = 0.0, float(variances.max())
    for _ in range(60):
        level = (low + high) / 2
        rate = (variances / max(level, 1e-300)).log2().clamp_min(0).sum() / 2
        low, high = (level, high) if rate > bits else (low, level)
    return high


def _textures(components: torch.Tensor, bases: int, generator: torch.Generator, on_step) -> torch.Tensor:
    """Basis `(N,)` of every patch, by the direction of its components whatever their strength."""
    ac = components[:, _STEADY : _STEADY + _TEXTURE]
    sample = torch.randperm(len(ac), generator=generator)[:_SAMPLE]
    unit = torch.nn.functional.normalize(ac[:, :_DIRECTIONS] + 1e-6, dim=1)
    products = (unit[sample][:, :, None] * unit[sample][:, None]).flatten(1).T[None].contiguous()
    seeds = fit_codebooks(products, bases, generator, 8, 4)[0]  # (bases, directions^2)
    part = ac[sample]
    members = torch.cdist(products[0].T, seeds).argmin(dim=1)
    floor = part.square().mean() * 1e-4
    level = (part.square().mean(dim=1, keepdim=True) + floor).sqrt()
    for _ in range(_ROUNDS["bases"]):
        on_step("bases")
        factors = _covariances(part / level, members, bases)
        members = _angular_costs(part, factors, floor).argmin(dim=1)
    return torch.cat([_angular_costs(rows, factors, floor).argmin(dim=1) for rows in ac.split(_CHUNK)])


def _covariances(rows: torch.Tensor, members: torch.Tensor, number: int) -> list[torch.Tensor]:
    """Covariance of the rows of each of a number of groups, pulled towards that of all where a group is small, fp32."""
    weight = 2 * rows.shape[1]
    total = rows.T @ rows * (weight / len(rows))
    parts = (rows[members == group] for group in range(number))
    return [(part.T @ part + total) / (len(part) + weight) for part in parts]


def _angular_costs(rows: torch.Tensor, covariances: list[torch.Tensor], floor: torch.Tensor) -> torch.Tensor:
    """Negative log-likelihood `(N, bases)`, twice, of directions under covariances."""
    costs = []
    for covariance in covariances:
        values, vectors = torch.linalg.eigh(covariance)
        values = values.clamp_min(values.max() * 1e-5)
        distance = ((rows @ vectors).square() / values).sum(dim=1) + floor
        costs.append(rows.shape[1] * distance.log() + values.log().sum())
    return torch.stack(costs, dim=1)


def _fit_bases(
    model: ClassifiedProductQuantizer, components: torch.Tensor, basis: torch.Tensor, levels: torch.Tensor
) -> None:
    """Principal components of the patches of each basis, each patch divided by its level."""
    coefficients = model.rotations.shape[1]
    covariances = _covariances(components / levels[:, None], basis, len(model.rotations))
    for rotation, covariance in zip(model.rotations, covariances, strict=True):
        _, vectors = torch.linalg.eigh(covariance.double())
        rotation.copy_(vectors.flip(1)[:, :coefficients].T)


def _first_classes(model, components, basis, generator) -> torch.Tensor:
    """Classes `(N,)` within each basis, by how energies of bands of coefficients cluster."""
    per_basis = len(model.log_scales) // len(model.rotations)
    members = torch.empty(len(components), dtype=torch.int64)
    edges = sorted({round(_STEADY * (model.rotations.shape[1] / _STEADY) ** (i / 6)) for i in range(7)})
    for b, rotation in enumerate(model.rotations):
        rows = (basis == b).nonzero()[:, 0]
        squares = (components[rows] @ rotation.T).square()
        bands = [squares[:, start:stop].mean(dim=1) for start, stop in itertools.pairwise(edges)]
        logs = (torch.stack(bands) + 1e-5).log()[None].contiguous()  # (1, bands, n)
        if len(rows) < 2 * per_basis:
            members[rows] = b * per_basis + torch.arange(len(rows)) % per_basis
            continue
        seeds = fit_codebooks(logs, per_basis, generator, 8, 4)[0]
        members[rows] = b * per_basis + torch.cdist(logs[0].T, seeds).argmin(dim=1)
    return members


def _levels(model: ClassifiedProductQuantizer, members: torch.Tensor) -> torch.Tensor:
    """Strength `(N,)` of the texture of every patch's class."""
    return (model.log_variances[:, _STEADY:-1].mean(dim=1) / 2).exp()[members]


def _fit_scales(
    model: ClassifiedProductQuantizer, components: torch.Tensor, members: torch.Tensor, distortion: float
) -> None:
    """Variances of the classes from their patches: `log_scales` without, `log_variances` with the coding error."""
    classes, width = model.log_scales.shape
    per_basis, left_out = classes // len(model.rotations), components.shape[1] - width
    sums, counts = torch.zeros(classes, width + 1), torch.bincount(members, minlength=classes).float()
    for b, rotation in enumerate(model.rotations):
        rows = (members // per_basis == b).nonzero()[:, 0]
        for part in rows.split(_CHUNK):
            squares = (components[part] @ rotation.T).square()
            rest = components[part].square().sum(dim=1) - squares.sum(dim=1)
            sums.index_add_(0, members[part], torch.cat([squares, rest[:, None].clamp_min(0)], dim=1))
    sums[:, -1] /= max(1, left_out)
    grouped, number = sums.unflatten(0, (-1, per_basis)), counts.unflatten(0, (-1, per_basis))[..., None]
    everything = grouped.sum(dim=1, keepdim=True) / number.sum(dim=1, keepdim=True).clamp_min(1)
    # A class of few patches has the spectrum of its basis at its own strength; one of none becomes weaker than any.
    means = grouped / number.clamp_min(1)
    strength = (means.mean(dim=2, keepdim=True) / everything.mean(dim=2, keepdim=True)).clamp_min(1e-4)
    variances = (grouped + _PRIOR * strength * everything) / (number + _PRIOR)
    variances = variances.flatten(0, 1).clamp_min(1e-8)
    model.log_scales.copy_(variances[:, :-1].log() / 2)
    model.log_variances.copy_((variances + distortion).log())


def _strengths(model: ClassifiedProductQuantizer, components: torch.Tensor, members: torch.Tensor) -> torch.Tensor:
    """Mean squares `(M,)` of the coefficients over all patches, each in its own basis."""
    counts = torch.bincount(members, minlength=len(model.log_scales)).float()
    return (model.log_scales.mul(2).exp() * counts[:, None]).sum(dim=0) / counts.sum()


def _reorder(model: ClassifiedProductQuantizer, order: torch.Tensor, canonical: torch.Tensor) -> None:
    """Coefficients in the order of the subspaces; relative ones then have the mean squares `canonical`: codewords spread
    over coordinates as strong and weak as they are on average."""
    model.rotations.copy_(model.rotations[:, order])
    model.log_scales.copy_(model.log_scales[:, order] - canonical.log() / 2)
    model.log_variances[:, :-1] = model.log_variances[:, :-1][:, order]


def _fit_codebooks(model, components, members, subspaces, codebook_size, generator):
    """Codebooks `(S - 1, K, D)` of relative coefficients, weighted as their errors count in pixels."""
    scales = model.log_scales.exp()  # (K, M)
    per_basis = len(scales) // len(model.rotations)
    vectors = torch.empty(len(components), scales.shape[1])
    for b, rotation in enumerate(model.rotations):
        for rows in (members // per_basis == b).nonzero()[:, 0].split(_CHUNK):
            vectors[rows] = (components[rows] @ rotation.T) / scales[members[rows]]
    vectors = vectors.T.contiguous().unflatten(0, (subspaces, -1))  # (S - 1, D, N)
    weights = scales.square().unflatten(1, (subspaces, -1)).mean(dim=2).T[:, members]  # (S - 1, N)
    return fit_codebooks(vectors, codebook_size, generator, weights=weights), vectors


def _likeliest(model: ClassifiedProductQuantizer, rows: torch.Tensor) -> torch.Tensor:
    """Likeliest classes `(n,)` of components `(n, P)`."""
    everywhere = (rows @ model.rotations.flatten(0, 1).T).unflatten(1, model.rotations.shape[:2])  # (n, bases, M)
    likelihoods = ClassLikelihoods(model.rotations, model.log_variances)
    return likelihoods.likeliest(rows, everywhere, 1)[0][:, 0]


def _encode(model: ClassifiedProductQuantizer, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Classes `(n,)` that reconstruct components `(n, P)` best, and their relative coefficients `(S - 1, D, n)`."""
    z = rows.T[None].contiguous()
    tables = (model.rotations, model.log_scales, model.log_variances, model.codebooks)
    classes = classify(z, *tables, model.candidates)[:, 0]  # (1, n)
    basis = classes // (model.codebook_size // model.bases)
    relative = rotate(z, basis, model.rotations)[0] / model.log_scales.exp().T[:, classes[0]]
    return classes[0], relative.unflatten(0, (model.num_subspaces - 1, -1))
