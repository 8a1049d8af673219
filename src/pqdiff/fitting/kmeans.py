"""k-means for all subspaces of a product quantizer at once."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from pqdiff.quantizers.search.nearest import nearest_codewords

_SEEDING_VECTORS = 8192  # k-means++ sees this many vectors; Lloyd's iterations see all


def fit_codebooks(
    vectors: torch.Tensor,
    codebook_size: int,
    generator: torch.Generator,
    warm_up: int = 12,
    iterations: int = 8,
    on_step: Callable[[], None] = lambda: None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Codebooks that minimize the squared error of `vectors`, by k-means++ (Arthur and Vassilvitskii 2007) and Lloyd.

    Args:
        vectors: fp32 training vectors `(S, D, N)`, in random order along N.
        codebook_size: number of codewords K; N must be at least K.
        generator: source of all randomness.
        warm_up: iterations on a quarter of the vectors.
        iterations: iterations on all of them.
        on_step: called after each iteration.
        weights: how much each vector's squared error counts, positive, `(S, N)`; None for all alike.

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
    part = vectors[:, :, : max(codebook_size, vectors.shape[2] // 4)]
    with _worker_threads() as pool:
        seeds = None if weights is None else weights[:, :_SEEDING_VECTORS]
        codebooks = _seed(vectors[:, :, :_SEEDING_VECTORS], codebook_size, generator, seeds)
        for step in range(warm_up + iterations):
            data = part if step < warm_up else vectors
            counted = None if weights is None else weights[:, : data.shape[2]]
            codebooks = _lloyd_step(data, codebooks, generator, pool, counted)
            on_step()
    return codebooks


@contextlib.contextmanager
def _worker_threads():
    """Threads that take a subspace each and use one core: splitting each small operation among cores costs more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def _seed(
    vectors: torch.Tensor, codebook_size: int, generator: torch.Generator, importance: torch.Tensor | None
) -> torch.Tensor:
    """k-means++: each new codeword is a vector drawn in proportion to its squared distance from those chosen."""
    num_subspaces, dim, n = vectors.shape
    codebooks = vectors.new_empty(num_subspaces, codebook_size, dim)
    weights = torch.ones(num_subspaces, n)
    for k in range(codebook_size):
        drawn = weights if importance is None else weights * importance
        chosen = torch.multinomial(drawn, 1, generator=generator)  # (S, 1)
        codeword = vectors.gather(2, chosen[:, None].expand(-1, dim, -1))  # (S, D, 1)
        codebooks[:, k] = codeword[:, :, 0]
        distances = (vectors - codeword).square_().sum(dim=1)
        weights = distances if k == 0 else torch.minimum(weights, distances)
        weights[weights.sum(dim=1) == 0] = 1  # fewer distinct vectors than codewords
    return codebooks


def _lloyd_step(
    vectors: torch.Tensor, codebooks: torch.Tensor, generator: torch.Generator, pool, weights: torch.Tensor | None
) -> torch.Tensor:
    """Codewords move to the weighted mean of their vectors, counted in float64."""
    num_subspaces, codebook_size, _ = codebooks.shape

    def assign(s: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        index = nearest_codewords(vectors[None, s : s + 1], codebooks[s : s + 1])[0, 0]  # (N,)
        own = None if weights is None else weights[s].double()
        counts = torch.bincount(index, weights=own, minlength=codebook_size)
        rows = (row.double() if own is None else row * own for row in vectors[s])
        sums = [torch.bincount(index, weights=row, minlength=codebook_size) for row in rows]
        return index, counts, torch.stack(sums, dim=1)

    result = codebooks.clone()
    for s, (index, counts, sums) in enumerate(pool.map(assign, range(num_subspaces))):
        alive = counts > 0
        result[s, alive] = (sums[alive] / counts[alive, None]).float()
        dead = int((~alive).sum())
        if dead:
            errors = (vectors[s].T - codebooks[s, index]).square_().sum(dim=1)
            errors = errors if weights is None else errors * weights[s]
            distinct = int((errors > 0).sum())
            chosen = torch.multinomial(errors, min(dead, distinct), generator=generator) if distinct else index[:0]
            result[s, (~alive).nonzero()[: len(chosen), 0]] = vectors[s, :, chosen].T
    return result
