"""Multichannel quantization (MoVQ): chunks of the channels share one codebook.

Zheng et al. 2022: MoVQ: Modulating Quantized Vectors for High-Fidelity Image Generation (arXiv 2209.09002), section 3.2.
Its decoder, whose norms see the codes, is `norm_type: spatial` of the transform `conv`.
"""

import torch

from pqdiff.quantizers.base import QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer, move_unused
from pqdiff.quantizers.ema import EMA_TENSORS, check_decay, register_codebooks, restart_ema, update_ema
from pqdiff.quantizers.search.nearest import quantize_product


@register_quantizer("multichannel")
class MultichannelQuantizer(CodebookQuantizer):
    """Replaces every slice of channels by the nearest of K codewords, the same for all slices.

    Args:
        latent_channels: number of latent channels d.
        num_subspaces: number of slices S; must divide `latent_channels`. The paper has 4 of 64 channels.
        codebook_size: number of codewords K; 1024 in the paper.
        ema_decay: None to learn codewords by gradient, a number between 0 and 1 for EMA updates.
        commitment_weight: weight of mean((z - sg[codes])^2).
        codebook_weight: weight of mean((sg[z] - codes)^2). There is no such term with `ema_decay`.

    Raises:
        ValueError: if S does not divide the channels, or a number is out of range.
    """

    fp32_tensors = (*CodebookQuantizer.fp32_tensors, *EMA_TENSORS)

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int,
        codebook_size: int,
        ema_decay: float | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
    ):
        super().__init__(latent_channels, num_subspaces, codebook_size)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        check_decay(ema_decay)
        self.ema_decay = ema_decay
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight if ema_decay is None else 0.0
        register_codebooks(self, torch.randn(1, codebook_size, self.visible), ema_decay)  # (1, K, d / S)

    def codewords(self) -> torch.Tensor:
        return self.codebooks.float().expand(self.num_subspaces, -1, -1)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check(z, self.in_channels, "z")
        vectors = self._split(z).transpose(1, 2).flatten(2)[:, None]  # (B, 1, d / S, S h w): one search for all slices
        codes, loss, indices, counts, residual_sums = quantize_product(
            vectors, self.codebooks, self.commitment_weight, self.codebook_weight
        )
        if self.training and self.ema_decay is not None:
            update_ema(self, counts, residual_sums, self.ema_decay)
        codes = codes[:, 0].unflatten(2, (self.num_subspaces, -1)).transpose(1, 2)  # (B, S, d / S, h w)
        indices = indices.view(len(z), self.num_subspaces, *z.shape[2:])
        return QuantizerOutput(self._join(codes, z.shape[2:]), indices, loss, {})

    @torch.no_grad()
    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        """A codeword is moved if no slice has used it."""
        self._check(z, self.in_channels, "z")
        unused = torch.stack(unused).all(dim=0, keepdim=True)  # (1, K)
        vectors = self._split(z.float()).permute(0, 1, 3, 2).reshape(1, -1, self.visible)
        changed = ("codebooks", move_unused(self.codebooks, unused, vectors, generator))
        return [changed, *restart_ema(self, unused)]

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, num_subspaces={self.num_subspaces}, codebook_size={self.codebook_size}, "
            f"ema_decay={self.ema_decay}, commitment_weight={self.commitment_weight}, "
            f"codebook_weight={self.codebook_weight}"
        )
