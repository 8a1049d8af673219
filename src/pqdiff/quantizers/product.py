"""Product quantization: S independent codebooks, each for its own contiguous slice of the channels.

Zavadski, Tatsch, Rother: Product-Quantised Image Representation for High-Quality Image Synthesis (PQGAN), Eq. (1).
S = 1 is vector quantization, S = latent_channels is scalar quantization. Unlike the reference implementation there is
one search for all subspaces, in fp32 even under autocast, and codewords may have hidden coordinates.
"""

import torch
from torch import nn

from pqdiff.quantizers.base import QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer
from pqdiff.quantizers.search.nearest import quantize_product


@register_quantizer("product")
class ProductQuantizer(CodebookQuantizer):
    """Replaces every slice of channels by the nearest of its K codewords.

    Args:
        latent_channels: number of latent channels d.
        num_subspaces: number of slices S; must divide `latent_channels`. Slice s of z holds (d + hidden_channels) / S
            channels, of which the first d / S are latents.
        codebook_size: number of codewords K per subspace.
        hidden_channels: coordinates that codewords have beyond what the latents show, over all subspaces; a multiple of S.
        commitment_weight: weight of mean((z - sg[codes])^2), which pulls the encoder to its codewords.
        codebook_weight: weight of mean((sg[z] - codes)^2), which pulls the codewords to the encoder. The paper's beta:
            its code puts 0.25 on this term and 1 on the commitment, the reverse of VQ-VAE.

    Raises:
        ValueError: if S does not divide the channels, or a number is out of range.
    """

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int,
        codebook_size: int,
        hidden_channels: int = 0,
        commitment_weight: float = 1.0,
        codebook_weight: float = 0.25,
    ):
        super().__init__(latent_channels, num_subspaces, codebook_size, hidden_channels)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        # N(0, 1) as in the official code: a small uniform start collapses the usage of two-dimensional subspaces.
        self.codebooks = nn.Parameter(torch.randn(num_subspaces, codebook_size, self.code_channels // num_subspaces))

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check(z, self.in_channels, "z")
        codes, loss, indices, _, _ = quantize_product(
            self._split(z), self.codebooks, self.commitment_weight, self.codebook_weight
        )
        return QuantizerOutput(self._join(codes, z.shape[2:]), indices.unflatten(2, z.shape[2:]), loss, {})

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, num_subspaces={self.num_subspaces}, codebook_size={self.codebook_size}, "
            f"hidden_channels={self.hidden_channels}, commitment_weight={self.commitment_weight}, "
            f"codebook_weight={self.codebook_weight}"
        )
