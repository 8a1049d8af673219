"""Vector quantization with one codebook: VQ (learned by gradient or by EMA), and FC if latents have few channels.

van den Oord et al. 2017: Neural Discrete Representation Learning (arXiv 1711.00937), Eq. (3) and appendix A.1.
"""

import torch

from pqdiff.quantizers.base import QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer
from pqdiff.quantizers.ema import EMA_TENSORS, check_decay, register_codebooks, restart_ema, update_ema
from pqdiff.quantizers.search.nearest import quantize_product
from pqdiff.suggestions import did_you_mean

_INITS = ("normal", "uniform")


@register_quantizer("vector")
class VectorQuantizer(CodebookQuantizer):
    """Replaces the vector of every position by the nearest of K codewords.

    Args:
        latent_channels: number of latent channels d.
        codebook_size: number of codewords K.
        ema_decay: None to learn codewords by gradient. A number between 0 and 1, usually 0.99, to set them to the EMA of
            the vectors that choose them, whenever `forward` runs in training mode.
        commitment_weight: weight of mean((z - sg[codes])^2), which pulls the encoder to its codewords.
        codebook_weight: weight of mean((sg[z] - codes)^2), which pulls the codewords to the encoder. There is no such term
            with `ema_decay`.
        init: `uniform` for codewords from U(-1/K, 1/K), as taming-transformers has them, `normal` for N(0, 1).

    Raises:
        ValueError: if an argument is out of range.
    """

    fp32_tensors = (*CodebookQuantizer.fp32_tensors, *EMA_TENSORS)

    def __init__(
        self,
        latent_channels: int,
        codebook_size: int,
        ema_decay: float | None = None,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
        init: str = "uniform",
    ):
        super().__init__(latent_channels, 1, codebook_size)
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        check_decay(ema_decay)
        if init not in _INITS:
            raise ValueError(f"init ({init!r}) is unknown: {did_you_mean(init, _INITS)}")
        self.ema_decay = ema_decay
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight if ema_decay is None else 0.0
        codebooks = torch.empty(1, codebook_size, latent_channels)
        if init == "normal":
            codebooks.normal_()
        else:
            codebooks.uniform_(-1 / codebook_size, 1 / codebook_size)
        register_codebooks(self, codebooks, ema_decay)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check(z, self.in_channels, "z")
        codes, loss, indices, counts, residual_sums = quantize_product(
            self._split(z), self.codebooks, self.commitment_weight, self.codebook_weight
        )
        if self.training and self.ema_decay is not None:
            update_ema(self, counts, residual_sums, self.ema_decay)
        return QuantizerOutput(self._join(codes, z.shape[2:]), indices.unflatten(2, z.shape[2:]), loss, {})

    @torch.no_grad()
    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        return [*super().restart(unused, z, generator), *restart_ema(self, torch.stack(unused))]

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, codebook_size={self.codebook_size}, ema_decay={self.ema_decay}, "
            f"commitment_weight={self.commitment_weight}, codebook_weight={self.codebook_weight}"
        )
