"""Floating-point operations of a call, counted without computing."""

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def flops_of(call: Callable[[], object]) -> int:
    """Operations of a call whose tensors are on the meta device, two per multiplication with addition.

    On the meta device attention is spelled out as matrix products, which torch's counter knows; the fused one that a CPU
    calls it does not count. The search for codewords counts as the product it is mostly made of.
    """
    searches = (torch.ops.pqdiff.nearest_codewords, torch.ops.pqdiff.quantize_product)
    mapping = dict.fromkeys(searches, _search_flops)
    with FlopCounterMode(display=False, custom_mapping=mapping) as counter:
        call()
    return counter.get_total_flops()


def _search_flops(z_shape, codebooks_shape, *args, out_shape=None, **kwargs) -> int:
    """[z, 1] times [-c, |c|^2 / 2] for all pairs: z (B, S, D, N), codebooks (S, K, D)."""
    batch, subspaces, dim, positions = z_shape
    return 2 * batch * subspaces * positions * codebooks_shape[1] * (dim + 1)
