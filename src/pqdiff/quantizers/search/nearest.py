"""Exact nearest-codeword search for product quantizers: the two operators behind which every backend works.

Both are opaque to `torch.compile` and `torch.export`: no graph break. Which backend runs is decided in `backends.py`.
Codewords must be finite.
"""

import torch

from pqdiff.quantizers.search.backends import backend
from pqdiff.quantizers.search.codeword_statistics import look_up


@torch.library.custom_op("pqdiff::nearest_codewords", mutates_args=())
def nearest_codewords(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    """Index of the codeword nearest to every vector, per subspace (squared Euclidean distance, searched in fp32).

    Args:
        z: vectors of shape `(B, S, D, N)`, any floating dtype; subspace s of position n is `z[b, s, :, n]`.
        codebooks: codewords of shape `(S, K, D)`.

    Returns:
        int64 indices in `[0, K)` of shape `(B, S, N)`. Equal distances give the lowest index, vectors with NaN give 0.
    """
    _check_shapes(z, codebooks)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        return backend(z.device).nearest(z.detach(), codebooks.detach().float()).long()


@nearest_codewords.register_fake
def _(z: torch.Tensor, codebooks: torch.Tensor) -> torch.Tensor:
    return z.new_empty((z.shape[0], z.shape[1], z.shape[3]), dtype=torch.int64)


@torch.library.custom_op("pqdiff::quantize_product", mutates_args=())
def quantize_product(
    z: torch.Tensor, codebooks: torch.Tensor, commitment_weight: float, codebook_weight: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Search, look-up and loss in one pass, with what backward, moving averages and usage statistics need.

    Differentiable: z_q passes its gradient to z unchanged (straight-through); the loss pulls z by `commitment_weight`
    and the codewords by `codebook_weight`. Nothing of the size N x S x K is ever kept, and backward has no scatter.

    Args:
        z: vectors of shape `(B, S, D, N)`, any floating dtype.
        codebooks: codewords of shape `(S, K, D)`.
        commitment_weight: weight of mean((z - sg[z_q])^2).
        codebook_weight: weight of mean((sg[z] - z_q)^2).

    Returns:
        z_q `(B, S, D, N)` in the dtype of z, the chosen codewords, NaN where z is; the scalar loss in fp32; int64 indices
        `(B, S, N)` as of `nearest_codewords`; int32 counts `(S, K)` of the uses of every codeword; and fp32 residual_sums
        `(S, K, D)`: the sum of z - c over the vectors of each codeword c. The last three carry no gradient.
    """
    _check_shapes(z, codebooks)
    with torch.no_grad(), torch.autocast(z.device.type, enabled=False):
        z_q, indices, counts, residual_sums, squared_error = backend(z.device).quantize(
            z.detach(), codebooks.detach().float()
        )
        loss = squared_error * ((commitment_weight + codebook_weight) / max(z.numel(), 1))
        return z_q, loss, indices.long(), counts.int(), residual_sums


@quantize_product.register_fake
def _(z: torch.Tensor, codebooks: torch.Tensor, commitment_weight: float, codebook_weight: float):
    return (
        z.new_empty(z.shape),
        z.new_empty((), dtype=torch.float32),
        z.new_empty((z.shape[0], z.shape[1], z.shape[3]), dtype=torch.int64),
        z.new_empty(codebooks.shape[:2], dtype=torch.int32),
        z.new_empty(codebooks.shape, dtype=torch.float32),
    )


def _check_shapes(z: torch.Tensor, codebooks: torch.Tensor) -> None:
    """ValueError unless the shapes fit: the compiled search reads memory by them."""
    if z.ndim != 4 or codebooks.ndim != 3 or z.shape[1:3] != (codebooks.shape[0], codebooks.shape[2]):
        raise ValueError(
            f"z {tuple(z.shape)} must be (B, S, D, N) for codebooks (S, K, D), got {tuple(codebooks.shape)}"
        )
    if not codebooks.shape[1]:
        raise ValueError(f"codebooks {tuple(codebooks.shape)} must hold at least one codeword each")
    check_devices(z, codebooks)


def check_devices(z: torch.Tensor, *tables: torch.Tensor) -> None:
    """ValueError unless the tables are where the vectors are: the compiled search would read memory of another device."""
    for table in tables:
        if table.device != z.device:
            raise ValueError(f"z is on {z.device}, codewords or tables are on {table.device}: move both to one device")


def _save_for_backward(ctx, inputs, output) -> None:
    z, codebooks, commitment_weight, codebook_weight = inputs
    z_q, _, indices, counts, residual_sums = output
    ctx.mark_non_differentiable(indices, counts, residual_sums)
    residual = None
    if ctx.needs_input_grad[0]:
        # In half precision z_q is a rounded codeword. The residual is saved, not z and z_q: users may overwrite those.
        residual = z - z_q if z.dtype == torch.float32 else z.float() - look_up(codebooks.float(), indices)
    ctx.save_for_backward(residual, residual_sums if ctx.needs_input_grad[1] else None)
    ctx.scale = 2 / max(z.numel(), 1)
    ctx.weights = commitment_weight, codebook_weight
    ctx.codebooks_dtype = codebooks.dtype


def _backward(ctx, grad_z_q, grad_loss, *_):
    residual, residual_sums = ctx.saved_tensors
    commitment_weight, codebook_weight = ctx.weights
    scale = grad_loss.float() * ctx.scale
    grad_z = grad_codebooks = None
    if residual is not None:
        pull = (scale * commitment_weight).to(grad_z_q.dtype)
        grad_z = torch.addcmul(grad_z_q, residual.to(grad_z_q.dtype), pull)
    if residual_sums is not None:
        grad_codebooks = (residual_sums * (-codebook_weight * scale)).to(ctx.codebooks_dtype)
    return grad_z, grad_codebooks, None, None


quantize_product.register_autograd(_backward, setup_context=_save_for_backward)
