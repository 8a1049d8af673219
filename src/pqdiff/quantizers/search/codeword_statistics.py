"""What training needs beside the indices: codewords, uses, residuals. Plain torch, for searches that give only indices."""

import torch


def look_up(codebooks: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Codewords (B, S, D, N) of codebooks (S, K, D) for int64 indices (B, S, N)."""
    table = codebooks.transpose(1, 2).contiguous()  # (S, D, K): written straight into channel planes
    dim = table.shape[1]
    return table.expand(len(indices), -1, -1, -1).gather(3, indices[:, :, None].expand(-1, -1, dim, -1))


def quantize(z: torch.Tensor, codebooks: torch.Tensor, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Everything about z `(B, S, D, N)` once its int64 indices `(B, S, N)` in codebooks `(S, K, D)` fp32 are known.

    Returns:
        z_q `(B, S, D, N)` in the dtype of z, NaN where z is; the indices; int32 counts `(S, K)` of the uses of every
        codeword; residual_sums `(S, K, D)` fp32, the sum of z - c over the vectors of each codeword c; and the scalar
        squared_error fp32, the sum of |z - c|^2.
    """
    num_subspaces, codebook_size, dim = codebooks.shape
    z_q = look_up(codebooks, indices)
    z_q = torch.where(z.isnan(), z.float(), z_q)  # NaN stays visible
    residual = z.float() - z_q
    chosen = indices.transpose(0, 1).reshape(num_subspaces, -1)  # (S, BN)
    pull = residual.permute(1, 2, 0, 3).reshape(num_subspaces, dim, -1)  # (S, D, BN)
    if z.device.type == "cpu":
        counts = chosen.new_zeros(num_subspaces, codebook_size, dtype=torch.int32)
        counts.scatter_add_(1, chosen, counts.new_ones(1).expand_as(chosen))
        sums = pull.new_zeros(num_subspaces, dim, codebook_size)
        sums.scatter_add_(2, chosen[:, None].expand_as(pull), pull)
        residual_sums = sums.transpose(1, 2).contiguous()
    else:  # index_add_ has a deterministic variant on GPUs, and is fast there
        offsets = torch.arange(num_subspaces, device=z.device)[:, None] * codebook_size
        rows = (chosen + offsets).flatten()  # (S BN)
        counts = rows.new_zeros(num_subspaces * codebook_size, dtype=torch.int32)
        counts = counts.index_add_(0, rows, torch.ones_like(rows, dtype=torch.int32)).view(num_subspaces, -1)
        residual_sums = pull.new_zeros(num_subspaces * codebook_size, dim)
        residual_sums.index_add_(0, rows, pull.transpose(1, 2).reshape(-1, dim))
        residual_sums = residual_sums.view(num_subspaces, codebook_size, dim)
    z_q = z_q.to(z.dtype).contiguous()  # as the operator's fake kernel promises: z may have other strides
    return z_q, indices, counts, residual_sums, residual.square_().sum()
