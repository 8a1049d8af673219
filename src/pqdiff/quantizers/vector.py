"""Vector quantization with one codebook: VQ (learned by gradient or by EMA), and FC if latents have few channels.

van den Oord et al. 2017: Neural Discrete Representation Learning (arXiv 1711.00937), Eq. (3) and appendix A.1. Unlike in
many implementations, EMA updates happen only in training mode, count the vectors of all processes, and start from cluster
sizes of 1: a codeword that is never used fades away, it does not explode.
"""

import torch
from torch import nn

from pqdiff.quantizers.base import QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import CodebookQuantizer
from pqdiff.quantizers.search.nearest import quantize_product
from pqdiff.suggestions import did_you_mean

_EPSILON = 1e-5  # of the Laplace smoothing of cluster sizes
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

    fp32_tensors = (*CodebookQuantizer.fp32_tensors, "cluster_sizes", "embedding_sums")

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
        if ema_decay is not None and not 0 < ema_decay < 1:
            raise ValueError(
                f"ema_decay ({ema_decay}) must be between 0 and 1, or None to learn codewords by gradient"
            )
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
        if ema_decay is None:
            self.codebooks = nn.Parameter(codebooks)
        else:
            self.register_buffer("codebooks", codebooks)
            self.register_buffer("cluster_sizes", torch.ones(1, codebook_size))
            self.register_buffer("embedding_sums", codebooks.clone())

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check(z, self.in_channels, "z")
        codes, loss, indices, counts, residual_sums = quantize_product(
            self._split(z), self.codebooks, self.commitment_weight, self.codebook_weight
        )
        if self.training and self.ema_decay is not None:
            self._update(counts, residual_sums)
        return QuantizerOutput(self._join(codes, z.shape[2:]), indices.unflatten(2, z.shape[2:]), loss, {})

    @torch.no_grad()
    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        changed = super().restart(unused, z, generator)
        if self.ema_decay is None:
            return changed
        moved = torch.stack(unused).to(self.codebooks.device)  # (1, K)
        self.cluster_sizes[moved] = 1.0
        self.embedding_sums[moved] = self.codebooks[moved]
        return [*changed, ("cluster_sizes", moved), ("embedding_sums", moved[..., None].expand_as(self.codebooks))]

    @torch.no_grad()
    def _update(self, counts: torch.Tensor, residual_sums: torch.Tensor) -> None:
        """One EMA step with the uses `(1, K)` and residuals `(1, K, d)` of the vectors of this process."""
        batch = torch.cat([counts[..., None].float(), residual_sums], dim=2)  # (1, K, 1 + d)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(batch)
        # One vector that overflowed in fp16 must not spoil its codeword for good: the scaler skips such a step.
        batch = torch.where(batch.isfinite().all(dim=2, keepdim=True), batch, 0.0)
        counts, sums = batch[..., 0], batch[..., 1:] + batch[..., :1] * self.codebooks
        self.cluster_sizes.lerp_(counts, 1 - self.ema_decay)
        self.embedding_sums.lerp_(sums, 1 - self.ema_decay)
        total = self.cluster_sizes.sum()
        smoothed = (self.cluster_sizes + _EPSILON) / (total + self.codebook_size * _EPSILON) * total
        self.codebooks.copy_(self.embedding_sums / smoothed[..., None])

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, codebook_size={self.codebook_size}, ema_decay={self.ema_decay}, "
            f"commitment_weight={self.commitment_weight}, codebook_weight={self.codebook_weight}"
        )
