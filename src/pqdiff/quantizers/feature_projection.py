"""Linear projection of some rows of a large frozen table, with a gradient for the projection, in bounded memory.

Only rows that are asked for are projected, a block at a time, forward and backward: neither the rows in fp32 nor a
gradient of the table's size is ever kept. Blocks have one fixed size, so a row's projection has the same bits whatever
rows are projected with it. Opaque to `torch.compile` and `torch.export`.
"""

import torch

from pqdiff.quantizers.search.exact_matmul import exact_matmul

_BLOCK = 256
_BLOCK_ACCELERATOR = 8192


@torch.library.custom_op("pqdiff::project_features", mutates_args=())
def project_features(
    features: torch.Tensor, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """weight @ features[row] + bias for every row; differentiable in weight and bias.

    Args:
        features: table `(K, F)`, any floating dtype; the product is in fp32.
        rows: int64 `(n,)`.
        weight: `(d, F)` fp32.
        bias: `(d,)` fp32.

    Returns:
        `(n, d)` fp32.
    """
    result = torch.empty((len(rows), len(weight)), device=features.device)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False), exact_matmul():
        for part, block in _blocks(features, rows):
            result[part] = torch.addmm(bias, block, weight.T)[: part.stop - part.start]
    return result


@project_features.register_fake
def _(features, rows, weight, bias):
    return features.new_empty((rows.shape[0], weight.shape[0]), dtype=torch.float32)


def _blocks(features: torch.Tensor, rows: torch.Tensor):
    """Pairs of a slice of `rows` and their features in fp32, with rows of zeros up to the fixed size `(block, F)`."""
    size = _BLOCK if features.device.type == "cpu" else _BLOCK_ACCELERATOR
    for start in range(0, len(rows), size):
        part = slice(start, min(start + size, len(rows)))
        block = torch.zeros((size, features.shape[1]), device=features.device)
        block[: part.stop - start] = features[rows[part]]
        yield part, block


@torch.library.custom_op("pqdiff::project_features_backward", mutates_args=())
def _project_features_backward(features: torch.Tensor, rows: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Gradient of the weight `(d, F)` for one of the projections `(n, d)`."""
    result = torch.zeros((gradient.shape[1], features.shape[1]), device=features.device)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        for part, block in _blocks(features, rows):
            result.addmm_(gradient[part].float().T, block[: part.stop - part.start])
    return result


@_project_features_backward.register_fake
def _(features, rows, gradient):
    return gradient.new_empty((gradient.shape[1], features.shape[1]), dtype=torch.float32)


def _save_for_backward(ctx, inputs, output) -> None:
    features, rows, _, _ = inputs
    ctx.save_for_backward(features, rows)


def _backward(ctx, gradient):
    features, rows = ctx.saved_tensors
    weight = _project_features_backward(features, rows, gradient) if ctx.needs_input_grad[2] else None
    return None, None, weight, gradient.sum(dim=0) if ctx.needs_input_grad[3] else None


project_features.register_autograd(_backward, setup_context=_save_for_backward)
