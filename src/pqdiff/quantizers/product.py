"""Product quantization: S independent codebooks, each for its own contiguous slice of the channels.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN), Eq. (1).
S = 1 is vector quantization, S = latent_channels is scalar quantization. Unlike the reference implementation there is
one search for all subspaces, in fp32 even under autocast.
"""

import torch
from torch import nn

from .base import Quantizer, QuantizerOutput, register_quantizer
from .nearest import nearest_codewords


@register_quantizer("product")
class ProductQuantizer(Quantizer):
    """Replaces every slice of d/S channels by the nearest of its K codewords.

    Args:
        latent_channels: number of channels d.
        num_subspaces: number of slices S; must divide `latent_channels`. Slice s holds channels [s d/S, (s+1) d/S).
        codebook_size: number of codewords K per subspace.
        commitment_weight: weight of mean((z - sg[z_q])^2), which pulls the encoder to its codewords.
        codebook_weight: weight of mean((sg[z] - z_q)^2), which pulls the codewords to the encoder. The paper's beta:
            its code puts 0.25 on this term and 1 on the commitment, the reverse of VQ-VAE.

    Raises:
        ValueError: if `num_subspaces` does not divide `latent_channels`, or a number is out of range.
    """

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int,
        codebook_size: int,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
    ):
        super().__init__()
        if latent_channels < 1 or num_subspaces < 1 or latent_channels % num_subspaces:
            raise ValueError(
                f"latent_channels ({latent_channels}) must be divisible by num_subspaces ({num_subspaces}), both at least 1"
            )
        if codebook_size < 1:
            raise ValueError(f"codebook_size ({codebook_size}) must be at least 1")
        for name, weight in (("commitment_weight", commitment_weight), ("codebook_weight", codebook_weight)):
            if not 0 <= weight < float("inf"):
                raise ValueError(f"{name} ({weight}) must be a finite number, 0 or greater")
        self.latent_channels = latent_channels
        self.num_subspaces = num_subspaces
        self.codebook_size = codebook_size
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        # N(0, 1) as in the official code: a small uniform start collapses the usage of two-dimensional subspaces.
        self.codebooks = nn.Parameter(torch.randn(num_subspaces, codebook_size, latent_channels // num_subspaces))

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.num_subspaces

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check_latents(z)
        batch, _, height, width = z.shape
        z_q, indices, loss = _QuantizeStraightThrough.apply(
            z.reshape(batch, self.num_subspaces, -1, height * width),  # (B, S, d/S, HW)
            self.codebooks,
            self.commitment_weight,
            self.codebook_weight,
        )
        return QuantizerOutput(z_q.reshape(z.shape), indices.reshape(batch, self.num_subspaces, height, width), loss)

    def indices_to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        if indices.ndim != 4 or indices.shape[1] != self.num_subspaces:
            raise ValueError(f"indices must be (B, {self.num_subspaces}, H, W), got {tuple(indices.shape)}")
        z_q = _look_up(self.codebooks, indices.flatten(2).long())
        return z_q.reshape(len(indices), self.latent_channels, *indices.shape[2:])

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, num_subspaces={self.num_subspaces}, codebook_size={self.codebook_size}, "
            f"commitment_weight={self.commitment_weight}, codebook_weight={self.codebook_weight}"
        )

    def _check_latents(self, z: torch.Tensor) -> None:
        if z.ndim != 4 or z.shape[1] != self.latent_channels:
            raise ValueError(f"z must be (B, {self.latent_channels}, H, W), got {tuple(z.shape)}")
        if not z.is_floating_point():
            raise ValueError(f"z must have a floating dtype, got {z.dtype}")


class _QuantizeStraightThrough(torch.autograd.Function):
    """Search, look-up and loss with hand-written gradients: nothing of the size N x S x K is ever kept."""

    @staticmethod
    def forward(ctx, z, codebooks, commitment_weight, codebook_weight):
        # z (B, S, D, N), codebooks (S, K, D)
        indices = nearest_codewords(z, codebooks)  # (B, S, N)
        z_q = torch.where(z.isnan(), z.float(), _look_up(codebooks, indices))  # NaN stays visible
        residual = z.float() - z_q
        mse = residual.square().mean()
        ctx.save_for_backward(residual, indices)
        ctx.weights = commitment_weight, codebook_weight
        ctx.codebooks_shape = codebooks.shape
        ctx.mark_non_differentiable(indices)
        return z_q.to(z.dtype), indices, (commitment_weight + codebook_weight) * mse

    @staticmethod
    def backward(ctx, grad_z_q, _, grad_loss):
        residual, indices = ctx.saved_tensors
        commitment_weight, codebook_weight = ctx.weights
        scale = grad_loss.float() * (2 / residual.numel())
        grad_z = grad_codebooks = None
        if ctx.needs_input_grad[0]:
            grad_z = torch.addcmul(
                grad_z_q, residual.to(grad_z_q.dtype), (scale * commitment_weight).to(grad_z_q.dtype)
            )
        if ctx.needs_input_grad[1]:
            num_subspaces, codebook_size, dim = ctx.codebooks_shape
            pull = residual.permute(1, 2, 0, 3).reshape(num_subspaces, dim, -1)  # (S, D, BN)
            chosen = indices.transpose(0, 1).reshape(num_subspaces, 1, -1).expand_as(pull)
            sums = pull.new_zeros(num_subspaces, dim, codebook_size).scatter_add_(2, chosen, pull)
            grad_codebooks = sums.transpose(1, 2) * (-codebook_weight * scale)  # (S, K, D)
        return grad_z, grad_codebooks, None, None


def _look_up(codebooks: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Codewords (B, S, D, N) of codebooks (S, K, D) for int64 indices (B, S, N)."""
    table = codebooks.transpose(1, 2).contiguous()  # (S, D, K): written straight into channel planes
    dim = table.shape[1]
    return table.expand(len(indices), -1, -1, -1).gather(3, indices[:, :, None].expand(-1, -1, dim, -1))
