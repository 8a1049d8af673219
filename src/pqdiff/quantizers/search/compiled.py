"""Nearest-codeword search fused by `torch.compile`. It is never chosen automatically: its first call takes ten seconds or
more.

Distances are computed from direct differences, which lose no digits on any data. Of each run of codewords only the
minimum is kept, with the positions innermost in memory; then the winning run is searched once more. From a few dimensions
on the matrix products of the plain search are faster, and are used instead.
"""

import functools
import logging

import torch

from pqdiff.quantizers.search import codeword_statistics
from pqdiff.quantizers.search import plain as search_plain
from pqdiff.quantizers.search.native_build import NativeUnavailable, find_compiler

logger = logging.getLogger(__name__)

_RUN = 16  # codewords per run
_UNROLLED = 4  # codewords of a run that are unrolled: more take long to compile and are not faster
_MAX_DIM = 8
_SCRATCH_FLOATS = 2**21  # floats for the minima of all runs and the codewords of the winning runs

_fault: str | None = None  # why compiling failed, after it has failed


def why_not() -> str | None:
    """None if nothing is known before compiling that prevents this search, else the reason in one line."""
    try:
        find_compiler()
    except NativeUnavailable as error:
        return str(error)
    return _fault


def nearest(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """int64 indices `(B, S, N)` for z `(B, S, D, N)` of any floating dtype and codebooks `(S, K, D)` fp32."""
    global _fault
    batch, num_subspaces, dim, num_positions = z.shape
    indices = torch.empty((batch, num_subspaces, num_positions), dtype=torch.int64, device=z.device)
    if _fault or dim > _MAX_DIM or not indices.numel():
        return search_plain.nearest(z, codebooks)
    # The runs are filled up with copies of the last codeword, which wins ties with its copies.
    padding = codebooks[:, -1:].expand(-1, -codebooks.shape[1] % _RUN, -1)
    runs = torch.cat([codebooks, padding], dim=1).unflatten(1, (-1, _RUN))  # (S, R, run, D)
    step = max(64, _SCRATCH_FLOATS // (num_subspaces * (runs.shape[1] + _RUN * dim)) // 64 * 64)
    try:
        for b in range(batch):
            for n in range(0, num_positions, step):
                x = z[b, :, :, n : n + step].float().contiguous()
                indices[b, :, n : n + step] = _compiled()(x, runs)
    except (
        Exception
    ) as error:  # the compilers raise many types, and a failed optimization must not stop a training run
        _fault = f"torch.compile failed: {' '.join(str(error).split())[:300]}"
        logger.warning("Search backend compiled fails from now on, so plain torch is used instead: %s", _fault)
        return search_plain.nearest(z, codebooks)
    return indices


def quantize(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Search and statistics: see `codeword_statistics.quantize`."""
    return codeword_statistics.quantize(z, codebooks, nearest(z, codebooks))


@functools.cache
def _compiled():
    return torch.compile(_search, dynamic=True, fullgraph=True)


def _search(x: torch.Tensor, runs: torch.Tensor) -> torch.Tensor:
    """x (S, D, n), runs (S, R, run, D) -> indices (S, n)."""
    dims, size = range(x.shape[1]), runs.shape[2]
    low = None  # (S, R, n); without unrolling, the loop over codewords would cost more than the distances
    for part in runs.chunk(_UNROLLED, dim=2):
        distance = _distance([x[:, d, None, None] for d in dims], [part[..., d, None] for d in dims])
        low = distance if low is None else torch.minimum(low, distance)
    low = low.amin(2)
    run = _first_minimum(low)[0].clamp(max=low.shape[1] - 1)  # (S, n)
    table = runs.permute(0, 2, 3, 1)  # (S, run, D, R)
    winner = table.gather(3, run[:, None, None].expand(-1, size, len(dims), -1))  # (S, run, D, n)
    index, distance = _first_minimum(_distance([x[:, None, d] for d in dims], [winner[:, :, d] for d in dims]))
    return torch.where(distance.isnan(), 0, run * size + index)


def _first_minimum(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The minimum over dimension 1 of (S, k, n) and its lowest index, which is k if the minimum is NaN: index and minimum,
    both (S, n). Unlike argmin this is vectorized along n.
    """
    size = values.shape[1]
    minimum = values.amin(1)
    countdown = torch.arange(size, 0, -1, dtype=torch.float32, device=values.device)[:, None]
    return size - ((values == minimum[:, None]) * countdown).amax(1).long(), minimum


def _distance(x: list[torch.Tensor], c: list[torch.Tensor]) -> torch.Tensor:
    """Squared distance, from lists of coordinates. In one dimension it is the distance itself, which cannot underflow."""
    if len(x) == 1:
        return (x[0] - c[0]).abs()
    distance = (x[0] - c[0]).square()
    for x_d, c_d in zip(x[1:], c[1:], strict=True):
        distance = distance + (x_d - c_d).square()
    return distance
