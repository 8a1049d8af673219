"""Codebooks that are not learned by gradient: each codeword is the EMA of the vectors that choose it.

van den Oord et al. 2017 (arXiv 1711.00937), appendix A.1. Unlike in many implementations, updates count the vectors of all
processes, and cluster sizes start from 1: a codeword that is never used fades away, it does not explode.
"""

import torch
from torch import nn

_EPSILON = 1e-5  # of the Laplace smoothing of cluster sizes

# Buffers of `register_ema`, all of which stay in fp32.
EMA_TENSORS = ("cluster_sizes", "embedding_sums")


def check_decay(ema_decay: float | None) -> None:
    """ValueError unless the decay is between 0 and 1, or None."""
    if ema_decay is not None and not 0 < ema_decay < 1:
        raise ValueError(f"ema_decay ({ema_decay}) must be between 0 and 1, or None to learn codewords by gradient")


def register_codebooks(module: nn.Module, codebooks: torch.Tensor, ema_decay: float | None) -> None:
    """Make `codebooks` `(S, K, D)` a parameter of the module, or with a decay a buffer with what `update_ema` needs."""
    if ema_decay is None:
        module.codebooks = nn.Parameter(codebooks)
        return
    module.register_buffer("codebooks", codebooks)
    module.register_buffer("cluster_sizes", codebooks.new_ones(codebooks.shape[:2]))
    module.register_buffer("embedding_sums", codebooks.clone())


@torch.no_grad()
def update_ema(module: nn.Module, counts: torch.Tensor, residual_sums: torch.Tensor, decay: float) -> None:
    """One step.

    Args:
        module: as `register_codebooks` left it.
        counts: uses `(S, K)` of the codewords by the vectors of this process.
        residual_sums: `(S, K, D)`, sums of the vectors minus their codeword.
        decay: weight of what was there.
    """
    batch = torch.cat([counts[..., None].float(), residual_sums], dim=2)  # (S, K, 1 + D)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(batch)
    # One vector that overflowed in fp16 must not spoil its codeword for good: the scaler skips such a step.
    batch = torch.where(batch.isfinite().all(dim=2, keepdim=True), batch, 0.0)
    counts, sums = batch[..., 0], batch[..., 1:] + batch[..., :1] * module.codebooks
    module.cluster_sizes.lerp_(counts, 1 - decay)
    module.embedding_sums.lerp_(sums, 1 - decay)
    total = module.cluster_sizes.sum(dim=1, keepdim=True)
    smoothed = (module.cluster_sizes + _EPSILON) / (total + counts.shape[1] * _EPSILON) * total
    module.codebooks.copy_(module.embedding_sums / smoothed[..., None])


@torch.no_grad()
def restart_ema(module: nn.Module, moved: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """After codewords were moved, bool `(S, K)`: their averages begin anew. What changed, as of `Quantizer.restart`."""
    if not hasattr(module, "cluster_sizes"):
        return []
    moved = moved.to(module.codebooks.device)
    module.cluster_sizes[moved] = 1.0
    module.embedding_sums[moved] = module.codebooks[moved]
    return [("cluster_sizes", moved), ("embedding_sums", moved[..., None].expand_as(module.codebooks))]
