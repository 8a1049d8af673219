"""Fused nearest-codeword search on a GPU with Triton: one launch searches, looks up codewords and collects statistics.

The kernels pass their tests in Triton's interpreter and compile for A100 and H100, but have not run on a GPU yet: ask for
them with `PQDIFF_SEARCH=triton` or `use_backend("triton")`.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN), Eq. (1). The
reference implementation launches about ten kernels per subspace and keeps every distance matrix.
"""

import functools
import importlib.util
import os

import torch

_WIDE = 8  # from this dimension on, matrix products on tensor cores are faster than direct differences
_FIRST_WITH_TF32 = (8, 0)

# The search and the rescan of its winners must round alike, so the kernels name every fused multiply-add themselves
# (tl.fma) and the compiler may not make others. Triton's own default changes with version 3.10.
ENABLE_FP_FUSION = False


def is_interpreted() -> bool:
    """Whether Triton interprets its kernels, on CPU tensors: `TRITON_INTERPRET=1` was set before Triton was imported."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def why_not() -> str | None:
    """None if this search can be used, else the reason in one line. It needs Triton, and a CUDA device of compute
    capability 8.0 or Triton's interpreter.
    """
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if is_interpreted():
        return None
    if torch.version.hip is not None or not torch.cuda.is_available():
        return "it needs a CUDA GPU"
    capability = torch.cuda.get_device_capability()
    if capability < _FIRST_WITH_TF32:
        return f"it needs a GPU of compute capability 8.0, this one has {capability[0]}.{capability[1]}"
    return None


def nearest(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Index of the codeword nearest to every vector, per subspace (squared Euclidean distance, searched in fp32).

    Exact up to the rounding of the distance itself. It takes one launch for D < 8 and two from there on. No gradient.

    Args:
        z: vectors of shape `(B, S, D, N)`, any floating dtype and strides; fastest where N is innermost.
        codebooks: codewords of shape `(S, K, D)`, any floating dtype.

    Returns:
        int64 indices in `[0, K)` of shape `(B, S, N)`. Equal distances give the lowest index, vectors with NaN give 0.

    Raises:
        ValueError: if the shapes, dtypes or devices do not fit together.
    """
    _check(z, codebooks)
    indices = torch.empty((z.shape[0], z.shape[1], z.shape[3]), dtype=torch.int64, device=z.device)
    _launch(z, codebooks, indices)
    return indices


@torch.library.custom_op("pqdiff::quantize_triton", mutates_args=())
def quantize(
    z: torch.Tensor, codebooks: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Search, and compute everything that the forward pass, the backward pass, EMA and usage need from it.

    It takes at most six launches, does not synchronize, and has no shape that depends on data, so that a CUDA graph can
    hold it after a first call has compiled it. `torch.compile` does not look inside. It has no gradient of its own: call
    it from an `autograd.Function`. Residual sums are added atomically and in no fixed order, unless
    `torch.use_deterministic_algorithms` asks for a fixed one. PyTorch then also fills new memory by default, which takes
    more launches.

    Args:
        z: vectors of shape `(B, S, D, N)`, any floating dtype and strides; fastest where N is innermost.
        codebooks: codewords of shape `(S, K, D)`, any floating dtype.

    Returns:
        z_q: nearest codewords `(B, S, D, N)`, contiguous, in the dtype of z; NaN where z is NaN.
        indices: `(B, S, N)`, int16 for K <= 2^15, else int32, as from `nearest`.
        counts: how many vectors chose each codeword, `(S, K)` int32.
        residual_sums: sums of z - c over the vectors that chose c, `(S, K, D)` fp32.
        squared_error: sum of (z - z_q)^2 with z_q before rounding to its dtype, `()` fp32.

    Raises:
        ValueError: if the shapes, dtypes or devices do not fit together.
    """
    _check(z, codebooks)
    z_q, indices, counts, residual_sums, _ = _empty_outputs(z, codebooks)
    squared_errors = _launch(z, codebooks, indices, z_q, counts.zero_(), residual_sums.zero_())
    return z_q, indices, counts, residual_sums, squared_errors.sum()


@quantize.register_fake
def _(z: torch.Tensor, codebooks: torch.Tensor):
    return _empty_outputs(z, codebooks)


def _empty_outputs(z: torch.Tensor, codebooks: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors of the shapes and dtypes that `quantize` returns, with undefined values."""
    batch, num_subspaces, _, num_positions = z.shape
    index_dtype = torch.int16 if codebooks.shape[1] <= 2**15 else torch.int32
    return (
        torch.empty(z.shape, dtype=z.dtype, device=z.device),
        z.new_empty((batch, num_subspaces, num_positions), dtype=index_dtype),
        z.new_empty(codebooks.shape[:2], dtype=torch.int32),
        z.new_empty(codebooks.shape, dtype=torch.float32),
        z.new_empty((), dtype=torch.float32),
    )


def _check(z: torch.Tensor, codebooks: torch.Tensor) -> None:
    if z.ndim != 4 or not z.is_floating_point():
        raise ValueError(f"z must be (B, S, D, N) of a floating dtype, got {tuple(z.shape)} of {z.dtype}")
    if codebooks.ndim != 3 or codebooks.shape[1] < 1 or not codebooks.is_floating_point():
        raise ValueError(
            f"codebooks must be (S, K, D) of a floating dtype with K >= 1, "
            f"got {tuple(codebooks.shape)} of {codebooks.dtype}"
        )
    if (z.shape[1], z.shape[2]) != (codebooks.shape[0], codebooks.shape[2]) or z.shape[2] < 1:
        raise ValueError(
            f"z (B, S, D, N) and codebooks (S, K, D) must agree in S and D >= 1, "
            f"got {tuple(z.shape)} and {tuple(codebooks.shape)}"
        )
    if z.device != codebooks.device:
        raise ValueError(f"z ({z.device}) and codebooks ({codebooks.device}) must be on the same device; move one")


def _launch(
    z: torch.Tensor,
    codebooks: torch.Tensor,
    indices: torch.Tensor,
    z_q: torch.Tensor | None = None,
    counts: torch.Tensor | None = None,
    residual_sums: torch.Tensor | None = None,
) -> torch.Tensor | None:
    """Fill the given outputs. If z_q and the statistics are among them, return the partial sums of the squared error."""
    from pqdiff.quantizers.search import triton_kernels as kernels

    batch, num_subspaces, dim, num_positions = z.shape
    num_vectors = batch * num_positions
    codebooks = codebooks.detach().float().contiguous()
    fused = z_q is not None
    add_residuals = fused and not torch.are_deterministic_algorithms_enabled()
    if num_vectors == 0 or num_subspaces == 0:
        return z.new_zeros((), dtype=torch.float32) if fused else None
    common = (*z.stride(), num_vectors, num_positions, num_subspaces)
    constants = {"K": codebooks.shape[1], "D": dim}
    config = search_config(dim, num_vectors, num_subspaces, _num_multiprocessors(z.device))
    grid = (-(-num_vectors // config["BLOCK"]), num_subspaces)
    squared_errors = z.new_empty(grid[::-1], dtype=torch.float32) if fused else None
    outputs = (indices, z_q, counts, residual_sums, squared_errors)
    with torch.cuda.device_of(z):  # Triton launches on the current device
        if dim < _WIDE:
            search, inputs = kernels.narrow_kernel, (z, codebooks)
        else:
            search, inputs = kernels.wide_kernel, (z, codebooks, codebooks.mean(dim=1))
        flags = {"FUSED": fused, "ADD_RESIDUALS": add_residuals, "enable_fp_fusion": ENABLE_FP_FUSION}
        search[grid](*inputs, *outputs, *common, **constants, **config, **flags)
        if fused and not add_residuals:
            config = RESIDUAL_SUMS_CONFIG
            grid = (-(-codebooks.shape[1] // config["BLOCK_K"]), num_subspaces, dim)
            tensors = (z, codebooks, indices, residual_sums)
            fusion = {"enable_fp_fusion": ENABLE_FP_FUSION}
            kernels.residual_sums_kernel[grid](*tensors, *common, **constants, **config, **fusion)
    return squared_errors


# 32 codewords per program: 16 registers of sums per thread, and 32 comparisons for every vector that is read.
RESIDUAL_SUMS_CONFIG = {"BLOCK": 64, "BLOCK_K": 32, "num_warps": 4}


def search_config(dim: int, num_vectors: int, num_subspaces: int, num_multiprocessors: int) -> dict[str, int]:
    """Block sizes and number of warps of the search. They are fixed, because autotuning synchronizes and CUDA graphs
    cannot capture that."""
    if dim >= _WIDE:
        # Four arrays of BLOCK x BLOCK_K stay in registers. Arrays of twice the size need more than the 255 there are.
        return {"BLOCK": 64, "BLOCK_K": 32, "BLOCK_D": 16, "num_warps": 4}
    # The vectors of a thread share each load of a codeword, so blocks are as large as possible while every
    # multiprocessor gets two programs. A RUN of 4 balances the bookkeeping of the search (3 K / RUN instructions) against
    # the gathers of the rescan (RUN D).
    block = 512
    while block > 64 and -(-num_vectors // block) * num_subspaces < 2 * num_multiprocessors:
        block //= 2
    return {"BLOCK": block, "RUN": 4, "num_warps": 2 if block == 64 else 4}


@functools.cache
def _num_multiprocessors(device: torch.device) -> int:
    """Number of multiprocessors of a CUDA device; for the interpreter a number that gives the smallest blocks."""
    if device.type != "cuda":
        return 2**20
    return torch.cuda.get_device_properties(device).multi_processor_count
