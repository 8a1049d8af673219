"""Triton kernels of the fused nearest-codeword search; `triton_search.py` launches them.

Program (i, s) handles `BLOCK` vectors of subspace s, numbered through all images. z keeps its layout of one plane per
channel, so neighboring lanes read neighboring positions, and no distance leaves the registers. Every fused multiply-add
is written as `tl.fma`: the launches forbid the compiler to make others. Importing this module needs Triton.
"""

import triton
import triton.language as tl


@triton.jit
def narrow_kernel(
    z,  # (B, S, D, N), any strides
    codebooks,  # (S, K, D) fp32, contiguous like all that follow
    indices,  # (B, S, N) integer, written
    z_q,  # (B, S, D, N), written if FUSED, like all that follow
    counts,  # (S, K) int32, zero before
    residual_sums,  # (S, K, D) fp32, zero before; left alone unless ADD_RESIDUALS
    squared_errors,  # (S, number of blocks) fp32
    batch_stride,
    subspace_stride,
    dim_stride,
    position_stride,
    num_vectors,  # B N
    num_positions,  # N
    num_subspaces,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    RUN: tl.constexpr,
    FUSED: tl.constexpr,
    ADD_RESIDUALS: tl.constexpr,
):
    """Search for small D: one vector per lane, and the same codeword in all lanes."""
    subspace = tl.program_id(1).to(tl.int64)
    batch, position, mask = _locate(tl.program_id(0), num_vectors, num_positions, BLOCK)
    vectors = z + subspace * subspace_stride + batch * batch_stride + position * position_stride
    codebook = codebooks + subspace * K * D
    x = ()
    for d in tl.static_range(D):
        x = x + (tl.load(vectors + d * dim_stride, mask, other=0.0).to(tl.float32),)  # noqa: RUF005 Triton has no star

    # One comparison per codeword. The winning run of codewords is recorded once per run. Strict "<" keeps the lowest
    # index.
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    best_run = tl.zeros([BLOCK], tl.int32)
    for start in range(0, K, 16):  # 16 codewords unrolled: their loads are in flight while distances are computed
        for run_start in tl.static_range(0, 16, RUN):
            run_lowest = tl.full([BLOCK], float("inf"), tl.float32)
            for k in tl.static_range(RUN):
                distance = _squared_distance(x, codebook, start + run_start + k, K, D)
                run_lowest = tl.minimum(run_lowest, distance)
            closer = run_lowest < lowest
            best_run = tl.where(closer, start + run_start, best_run)
            lowest = tl.minimum(lowest, run_lowest)

    index = best_run
    lowest = tl.full([BLOCK], float("inf"), tl.float32)
    for k in tl.static_range(RUN):
        distance = _squared_distance(x, codebook, best_run + k, K, D)
        index = tl.where(distance < lowest, best_run + k, index)  # NaN is never less: index 0
        lowest = tl.minimum(lowest, distance)

    _finish(
        vectors, codebook, index, indices, z_q, counts, residual_sums, squared_errors, dim_stride, subspace, batch,
        position, mask, num_positions, num_subspaces, K, D, BLOCK, FUSED, ADD_RESIDUALS,
    )  # fmt: skip


@triton.jit
def wide_kernel(
    z,  # as in narrow_kernel
    codebooks,
    centers,  # (S, D) fp32: any point among the codewords
    indices,
    z_q,
    counts,
    residual_sums,
    squared_errors,
    batch_stride,
    subspace_stride,
    dim_stride,
    position_stride,
    num_vectors,
    num_positions,
    num_subspaces,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_D: tl.constexpr,
    FUSED: tl.constexpr,
    ADD_RESIDUALS: tl.constexpr,
):
    """Search for large D: scores by matrix products, then direct differences where the scores are too close to decide."""
    subspace = tl.program_id(1).to(tl.int64)
    batch, position, mask = _locate(tl.program_id(0), num_vectors, num_positions, BLOCK)
    vectors = z + subspace * subspace_stride + batch * batch_stride + position * position_stride
    codebook = codebooks + subspace * K * D
    center = centers + subspace * D

    # Column j of these holds codewords j, j + BLOCK_K, ...: nothing crosses lanes before the end.
    lowest = tl.full([BLOCK, BLOCK_K], float("inf"), tl.float32)
    second = tl.full([BLOCK, BLOCK_K], float("inf"), tl.float32)
    best_start = tl.zeros([BLOCK, BLOCK_K], tl.int32)
    square_norm = tl.zeros([BLOCK], tl.float32)
    largest_norm = tl.zeros([BLOCK_K], tl.float32)
    column = tl.arange(0, BLOCK_K)
    for start in range(0, K, BLOCK_K):
        code = start + column
        products = tl.zeros([BLOCK, BLOCK_K], tl.float32)
        norms = tl.zeros([BLOCK_K], tl.float32)
        square_norm = tl.zeros([BLOCK], tl.float32)
        for first_dim in range(0, D, BLOCK_D):
            dim = first_dim + tl.arange(0, BLOCK_D)
            # Centering keeps |x| |c| small beside the distances, so that the expanded square loses no digits for data
            # far from zero.
            origin = tl.load(center + dim, dim < D, other=0.0)
            valid = mask[:, None] & (dim < D)[None, :]
            x = tl.load(vectors[:, None] + dim[None, :] * dim_stride, valid, other=0.0).to(tl.float32)
            x = tl.where(valid, x - origin[None, :], 0.0)
            known = (code < K)[None, :] & (dim < D)[:, None]
            c = tl.load(codebook + code[None, :] * D + dim[:, None], known, other=0.0)
            c = tl.where(known, c - origin[:, None], 0.0)
            products = tl.dot(x, c, products, input_precision="tf32x3")
            norms += tl.sum(c * c, axis=0)
            square_norm += tl.sum(x * x, axis=1)
        # |c|^2 / 2 - x . c is half the squared distance without a term that is the same for all codewords.
        score = tl.where((code < K)[None, :], 0.5 * norms[None, :] - products, float("inf"))
        second = tl.minimum(second, tl.maximum(lowest, score))
        closer = score < lowest
        best_start = tl.where(closer, start, best_start)
        lowest = tl.where(closer, score, lowest)  # NaN is never closer
        largest_norm = tl.maximum(largest_norm, norms)

    codes = best_start + column[None, :]
    first, index = _take_lowest(lowest, codes, K)
    others = tl.where(codes == index[:, None], float("inf"), lowest)
    runner_up, runner_up_index = _take_lowest(others, codes, K)
    third = tl.min(tl.where(codes == runner_up_index[:, None], float("inf"), others), axis=1)
    third = tl.minimum(third, tl.min(second, axis=1))
    # Three products of TF32 parts have an error of at most 3 2^-20 |x| |c|, and their sum of D terms of 2^-22 D |x| |c|.
    # The error of the difference of two scores is at most twice that. The margin leaves as much again for the norms.
    bound = first + (2.0**-18 + (D + 2) * 2.0**-21) * (square_norm + tl.max(largest_norm, axis=0))
    if tl.max((mask & (runner_up <= bound)).to(tl.int32), axis=0) > 0:
        distance = tl.zeros([BLOCK], tl.float32)
        runner_up_distance = tl.zeros([BLOCK], tl.float32)
        for d in range(D):
            x_d = tl.load(vectors + d * dim_stride, mask, other=0.0).to(tl.float32)
            difference = x_d - tl.load(codebook + index * D + d)
            distance = tl.fma(difference, difference, distance)
            difference = x_d - tl.load(codebook + runner_up_index * D + d)
            runner_up_distance = tl.fma(difference, difference, runner_up_distance)
        lower = (runner_up_distance == distance) & (runner_up_index < index)
        index = tl.where(lower | (runner_up_distance < distance), runner_up_index, index)
    # More than two candidates are rare. NaN compares false and needs no search: its index is 0.
    if tl.max((mask & (third <= bound)).to(tl.int32), axis=0) > 0:
        index = _search_directly(vectors, codebook, dim_stride, mask, K, D, BLOCK, BLOCK_K)

    _finish(
        vectors, codebook, index, indices, z_q, counts, residual_sums, squared_errors, dim_stride, subspace, batch,
        position, mask, num_positions, num_subspaces, K, D, BLOCK, FUSED, ADD_RESIDUALS,
    )  # fmt: skip


@triton.jit
def residual_sums_kernel(
    z,  # as in narrow_kernel
    codebooks,
    indices,  # (B, S, N), read
    residual_sums,  # (S, K, D) fp32, written
    batch_stride,
    subspace_stride,
    dim_stride,
    position_stride,
    num_vectors,
    num_positions,
    num_subspaces,
    K: tl.constexpr,
    D: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Add residuals per codeword in a fixed order, so that results repeat: program (i, s, d) handles BLOCK_K codewords."""
    subspace = tl.program_id(1).to(tl.int64)
    d = tl.program_id(2)
    code = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    codebook = codebooks + subspace * K * D
    codeword = tl.load(codebook + code * D + d, code < K, other=0.0)
    sums = tl.zeros([BLOCK, BLOCK_K], tl.float32)
    block = tl.cdiv(num_vectors, BLOCK)
    while block > 0:  # Triton 3.6 and below cannot interpret a range that ends in an argument
        block -= 1
        batch, position, mask = _locate(block, num_vectors, num_positions, BLOCK)
        vectors = z + subspace * subspace_stride + batch * batch_stride + position * position_stride
        x = tl.load(vectors + d * dim_stride, mask, other=0.0).to(tl.float32)
        index = tl.load(indices + (batch * num_subspaces + subspace) * num_positions + position, mask, other=-1)
        sums += tl.where(index[:, None] == code[None, :], x[:, None] - codeword[None, :], 0.0)
    tl.store(residual_sums + (subspace * K + code) * D + d, tl.sum(sums, axis=0), code < K)


@triton.jit
def _locate(block, num_vectors, num_positions, BLOCK: tl.constexpr):
    """Image and position of every vector of a block, and whether it exists."""
    vector = block * BLOCK + tl.arange(0, BLOCK)
    return (vector // num_positions).to(tl.int64), (vector % num_positions).to(tl.int64), vector < num_vectors


@triton.jit
def _squared_distance(x, codebook, code, K: tl.constexpr, D: tl.constexpr):
    """Squared distance of x, a tuple of D blocks, to codeword `code`, or to the last codeword if `code` is K or more."""
    # A repetition of the last codeword is never strictly closer, so this padding changes no index.
    codeword = codebook + tl.minimum(code, K - 1) * D
    difference = x[0] - tl.load(codeword)
    distance = difference * difference
    for d in tl.static_range(1, D):
        difference = x[d] - tl.load(codeword + d)
        distance = tl.fma(difference, difference, distance)  # named, so that search and rescan round alike
    return distance


@triton.jit
def _take_lowest(scores, codes, K: tl.constexpr):
    """Minimum of every row without NaN, and the lowest code below K that has it."""
    lowest = tl.min(scores, axis=1)
    return lowest, tl.min(tl.where(scores == lowest[:, None], codes, K - 1), axis=1)


@triton.jit
def _search_directly(
    vectors, codebook, dim_stride, mask, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_K: tl.constexpr
):
    """Search by direct differences, which lose no digits. It is slow."""
    lowest = tl.full([BLOCK, BLOCK_K], float("inf"), tl.float32)
    best_start = tl.zeros([BLOCK, BLOCK_K], tl.int32)
    column = tl.arange(0, BLOCK_K)
    for start in range(0, K, BLOCK_K):
        codeword = codebook + tl.minimum(start + column, K - 1) * D
        distance = tl.zeros([BLOCK, BLOCK_K], tl.float32)
        for d in range(D):
            x = tl.load(vectors + d * dim_stride, mask, other=0.0).to(tl.float32)
            difference = x[:, None] - tl.load(codeword + d)[None, :]
            distance = tl.fma(difference, difference, distance)
        closer = distance < lowest
        best_start = tl.where(closer, start, best_start)
        lowest = tl.where(closer, distance, lowest)
    _, index = _take_lowest(lowest, best_start + column[None, :], K)
    return index


@triton.jit
def _finish(
    vectors, codebook, index, indices, z_q, counts, residual_sums, squared_errors, dim_stride, subspace, batch,
    position, mask, num_positions, num_subspaces, K: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
    FUSED: tl.constexpr, ADD_RESIDUALS: tl.constexpr,
):  # fmt: skip
    """Store the indices and, if FUSED, the codewords and the statistics."""
    row = batch * num_subspaces + subspace
    tl.store(indices + row * num_positions + position, index.to(indices.dtype.element_ty), mask)
    if FUSED:
        tl.atomic_add(counts + subspace * K + index, 1, mask, sem="relaxed")
        squared_error = tl.zeros([BLOCK], tl.float32)
        for d in range(D):
            x = tl.load(vectors + d * dim_stride, mask, other=0.0)
            x_float = x.to(tl.float32)
            codeword = tl.load(codebook + index * D + d)
            codeword = tl.where(x_float == x_float, codeword, x_float)  # z_q is NaN where z is
            tl.store(z_q + (row * D + d) * num_positions + position, codeword.to(z_q.dtype.element_ty), mask)
            residual = x_float - codeword
            squared_error = tl.fma(residual, residual, squared_error)
            if ADD_RESIDUALS:
                tl.atomic_add(residual_sums + (subspace * K + index) * D + d, residual, mask, sem="relaxed")
        total = tl.sum(tl.where(mask, squared_error, 0.0), axis=0)
        tl.store(squared_errors + subspace * tl.num_programs(0) + tl.program_id(0), total)
