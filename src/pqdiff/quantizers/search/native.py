"""Search in C++ (search.cpp) for nearest codewords and classes, on CPUs of machines that have a compiler. Optional."""

import ctypes
import functools
import threading

import torch

from pqdiff.quantizers.search.native_build import NativeUnavailable, load_library

_WORK_PER_THREAD = 2**20  # terms of distances that take about as long as starting a thread
_lock = threading.Lock()


def why_not() -> str | None:
    """None if this search can be used, else the reason in one line. Builds the library on the first call."""
    with _lock:
        return _load()[1]


def nearest(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """int64 indices `(B, S, N)` of CPU tensors z `(B, S, D, N)` of any floating dtype and codebooks `(S, K, D)` fp32."""
    indices = torch.empty((z.shape[0], z.shape[1], z.shape[3]), dtype=torch.int64)
    _search(_load()[0].pqdiff_search, z.float(), codebooks.contiguous(), indices)
    return indices


def quantize(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Same as `codeword_statistics.quantize`, but search and statistics take one pass over the data."""
    x = z.float()
    num_subspaces, codebook_size, dim = codebooks.shape
    z_q = torch.empty(z.shape, dtype=torch.float32)
    indices = torch.empty((z.shape[0], z.shape[1], z.shape[3]), dtype=torch.int64)
    counts = torch.zeros((num_subspaces, codebook_size), dtype=torch.int32)
    residual_sums = torch.zeros((num_subspaces, codebook_size, dim))
    squared_errors = torch.zeros(num_subspaces, dtype=torch.float64)
    _search(_load()[0].pqdiff_search, x, codebooks.contiguous(), indices, z_q, counts, residual_sums, squared_errors)
    return z_q.to(z.dtype), indices, counts, residual_sums, squared_errors.sum().float()


def classify(
    everywhere: torch.Tensor,
    outside: torch.Tensor,
    classes: torch.Tensor,
    scales: torch.Tensor,
    codebooks: torch.Tensor,
) -> torch.Tensor:
    """int64 tokens `(S, n)`, the class first: of the candidates of every vector, the one that reconstructs it best.

    Errors are added up in another order than by torch: of candidates that are equally good to seven digits, this search
    may take another one than the plain search.

    Args:
        everywhere: coefficients `(n, bases, M)` in every basis, fp32 as all numbers here.
        outside: squared lengths `(n, bases)` of what lies outside each basis.
        classes: int64 candidates `(n, c)` below K, the likeliest first.
        scales: units `(K, M)` of every class's coefficients.
        codebooks: codewords `(S - 1, K', D)` with (S - 1) D = M.
    """
    arguments = [x.contiguous() for x in (everywhere, outside, classes, scales, codebooks)]
    return _classify(_load()[0].pqdiff_classify, *arguments)


def scratch_bytes(z: torch.Tensor, codebooks: torch.Tensor) -> int:
    """Memory that `nearest` and `quantize` take beside their output, which torch's profiler does not see."""
    threads = _threads(z, codebooks)
    sizes = (ctypes.c_int64 * 5)(z.shape[0], *z.shape[1:], codebooks.shape[1])
    return 4 * _load()[0].pqdiff_scratch(sizes, threads)


@functools.cache
def _load() -> tuple[ctypes.CDLL, None] | tuple[None, str]:
    """The library, or the reason why there is none."""
    pointer, sizes, threads = ctypes.c_void_p, ctypes.POINTER(ctypes.c_int64), ctypes.c_int
    try:
        library = load_library()
        library.pqdiff_search.argtypes = [pointer, sizes, sizes, *[pointer] * 6, threads]
        library.pqdiff_classify.argtypes = [*[pointer] * 5, sizes, pointer, threads]
        library.pqdiff_scratch.argtypes, library.pqdiff_scratch.restype = [sizes, threads], ctypes.c_int64
    except (NativeUnavailable, AttributeError) as error:
        return None, str(error)
    for dim, number in ((1, 37), (2, 37), (2, 1100), (20, 37), (40, 37)):  # one for each way to search
        if not _is_right(library.pqdiff_search, dim, number):
            return None, f"the compiled search gives wrong indices at D = {dim}: the compiler has a fault"
    if not _takes_the_best(library.pqdiff_classify):
        return None, "the compiled search takes wrong classes: the compiler has a fault"
    return library, None


def _is_right(function, dim: int, number: int) -> bool:
    """Whether a small problem with a known answer, which has ties, is solved correctly."""
    z = (torch.arange(2 * dim * number, dtype=torch.float32) * 7 % 11).view(1, 2, dim, number)
    codebooks = (torch.arange(2 * 35 * dim, dtype=torch.float32) * 5 % 9).view(2, 35, dim)
    indices = torch.empty((1, 2, number), dtype=torch.int64)
    _search(function, z, codebooks, indices)
    distances = (z.unsqueeze(2) - codebooks[..., None]).square().sum(3)  # (1, 2, K, N) whole numbers, so this is exact
    countdown = torch.arange(35, 0, -1)[:, None]
    lowest = ((distances == distances.amin(2, keepdim=True)) * countdown).argmax(2)
    return torch.equal(indices, lowest)


def _takes_the_best(function) -> bool:
    """Whether of two classes the second is taken, which is the only one that has the vectors as codewords."""
    everywhere = (torch.arange(2 * 12 * 5, dtype=torch.float32) % 7).view(5, 2, 12)
    codebooks = torch.arange(7.0)[:, None].expand(4, 7, 3).contiguous()
    everywhere[:, 1] = everywhere[:, 1, ::3].repeat_interleave(3, dim=1)
    scales = torch.tensor([0.3, 1.0])[:, None].expand(2, 12).contiguous()
    tokens = _classify(function, everywhere, torch.zeros(5, 2), torch.tensor([[0, 1]] * 5), scales, codebooks)
    return bool((tokens[0] == 1).all()) and torch.equal(tokens[1:].float(), everywhere[:, 1, ::3].T)


def _threads(z: torch.Tensor, codebooks: torch.Tensor) -> int:
    return max(1, min(torch.get_num_threads(), z.numel() * codebooks.shape[1] // _WORK_PER_THREAD))


def _search(function, z, codebooks, indices, *outputs) -> None:
    if not indices.numel():
        return
    batch, num_subspaces, dim, num_positions = z.shape
    codebook_size = codebooks.shape[1]
    threads = _threads(z, codebooks)
    pointers = [output.data_ptr() for output in outputs] or [None] * 4
    failed = function(
        z.data_ptr(),
        (ctypes.c_int64 * 4)(*z.stride()),
        (ctypes.c_int64 * 5)(batch, num_subspaces, dim, num_positions, codebook_size),
        codebooks.data_ptr(),
        indices.data_ptr(),
        *pointers,
        threads,
    )
    if failed:
        raise MemoryError("not enough memory to search the codebooks")


def _classify(function, everywhere, outside, classes, scales, codebooks) -> torch.Tensor:
    tokens = torch.empty((len(codebooks) + 1, len(classes)), dtype=torch.int64)
    sizes = (*classes.shape, everywhere.shape[1], len(scales), *codebooks.shape)
    threads = max(1, min(torch.get_num_threads(), classes.numel() * codebooks.numel() // _WORK_PER_THREAD))
    pointers = [x.data_ptr() for x in (everywhere, outside, classes, scales, codebooks)]
    if function(*pointers, (ctypes.c_int64 * len(sizes))(*sizes), tokens.data_ptr(), threads):
        raise MemoryError("not enough memory to search the classes")
    return tokens
