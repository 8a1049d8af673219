"""Product quantization: S independent codebooks, each for its own contiguous slice of the channels.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN), Eq. (1).
S = 1 is vector quantization, S = latent_channels is scalar quantization. Unlike the reference implementation there is
one search for all subspaces, in fp32 even under autocast.
"""

import torch
from torch import nn

from .base import Quantizer, QuantizerOutput, register_quantizer
from .codeword_statistics import look_up
from .nearest import quantize_product


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
        z_q, loss, indices, _, _ = quantize_product(
            z.reshape(batch, self.num_subspaces, self.codebooks.shape[2], height * width),  # (B, S, d/S, HW)
            self.codebooks,
            self.commitment_weight,
            self.codebook_weight,
        )
        return QuantizerOutput(z_q.reshape(z.shape), indices.reshape(batch, self.num_subspaces, height, width), loss)

    def indices_to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        if indices.ndim != 4 or indices.shape[1] != self.num_subspaces:
            raise ValueError(f"indices must be (B, {self.num_subspaces}, H, W), got {tuple(indices.shape)}")
        z_q = look_up(self.codebooks, indices.flatten(2).long())
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
