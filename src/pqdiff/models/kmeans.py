"""k-means for all subspaces of a product quantizer at once."""

from collections.abc import Callable

import torch

from ..quantizers.nearest import nearest_codewords

_SEEDING_VECTORS = 8192  # k-means++ sees this many vectors; Lloyd's iterations see all


def fit_codebooks(
    vectors: torch.Tensor,
    codebook_size: int,
    generator: torch.Generator,
    warm_up: int = 12,
    iterations: int = 8,
    on_step: Callable[[], None] = lambda: None,
) -> torch.Tensor:
    """Codebooks that minimize the squared error of `vectors`, by k-means++ (Arthur and Vassilvitskii 2007) and Lloyd.

    Args:
        vectors: fp32 training vectors `(S, D, N)`, in random order along N.
        codebook_size: number of codewords K; N must be at least K.
        generator: source of all randomness.
        warm_up: iterations on a quarter of the vectors.
        iterations: iterations on all of them.
        on_step: called after each iteration.

    Returns:
        Codewords `(S, K, D)`, fp32. Clusters that lose all their vectors restart at badly represented ones.

    Raises:
        ValueError: if there are fewer vectors than codewords, or one is not finite.
    """
    if vectors.shape[2] < codebook_size:
        raise ValueError(
            f"codebook_size ({codebook_size}) needs at least as many patches, got {vectors.shape[2]}: add photos"
        )
    if not vectors.isfinite().all():
        raise ValueError("vectors hold NaN or infinity")
    codebooks = _seed(vectors[:, :, :_SEEDING_VECTORS], codebook_size, generator)
    part = vectors[:, :, : max(codebook_size, vectors.shape[2] // 4)]
    for step in range(warm_up + iterations):
        codebooks = _lloyd_step(part if step < warm_up else vectors, codebooks, generator)
        on_step()
    return codebooks


def _seed(vectors: torch.Tensor, codebook_size: int, generator: torch.Generator) -> torch.Tensor:
    """k-means++: each new codeword is a vector drawn in proportion to its squared distance from those chosen."""
    num_subspaces, dim, n = vectors.shape
    codebooks = vectors.new_empty(num_subspaces, codebook_size, dim)
    weights = torch.ones(num_subspaces, n)
    for k in range(codebook_size):
        chosen = torch.multinomial(weights, 1, generator=generator)  # (S, 1)
        codeword = vectors.gather(2, chosen[:, None].expand(-1, dim, -1))  # (S, D, 1)
        codebooks[:, k] = codeword[:, :, 0]
        distances = (vectors - codeword).square_().sum(dim=1)
        weights = distances if k == 0 else torch.minimum(weights, distances)
        weights[weights.sum(dim=1) == 0] = 1  # fewer distinct vectors than codewords
    return codebooks


def _lloyd_step(vectors: torch.Tensor, codebooks: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Codewords move to the mean of their vectors, counted in float64."""
    num_subspaces, codebook_size, dim = codebooks.shape
    indices = nearest_codewords(vectors[None], codebooks)[0]  # (S, N)
    result = codebooks.clone()
    for s in range(num_subspaces):  # one subspace at a time bounds the float64 copies
        index = indices[s]
        counts = torch.bincount(index, minlength=codebook_size)
        sums = torch.zeros(codebook_size, dim, dtype=torch.float64).index_add_(0, index, vectors[s].T.double())
        alive = counts > 0
        result[s, alive] = (sums[alive] / counts[alive, None]).float()
        dead = int((~alive).sum())
        if dead:
            errors = (vectors[s].T - codebooks[s, index]).square_().sum(dim=1)
            distinct = int((errors > 0).sum())
            chosen = torch.multinomial(errors, min(dead, distinct), generator=generator) if distinct else index[:0]
            result[s, (~alive).nonzero()[: len(chosen), 0]] = vectors[s, :, chosen].T
    return result
