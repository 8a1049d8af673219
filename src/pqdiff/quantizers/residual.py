"""Residual quantization (RQ-VAE): each codebook quantizes what the codebooks before it have left.

Lee et al. 2022: Autoregressive Image Generation using Residual Quantization (arXiv 2203.01941), Eq. (3), (4) and (9).
"""

import torch

from pqdiff.quantizers.base import Quantizer, QuantizerOutput, check_weights, register_quantizer
from pqdiff.quantizers.codebook import move_unused
from pqdiff.quantizers.ema import EMA_TENSORS, check_decay, register_codebooks, restart_ema, update_ema
from pqdiff.quantizers.search.codeword_statistics import look_up
from pqdiff.quantizers.search.nearest import nearest_codewords, quantize_product


@register_quantizer("residual")
class ResidualQuantizer(Quantizer):
    """Codes every vector as a sum of D codewords, chosen one after the other.

    A sum does not tell which codewords it is made of: `nearest` chooses greedily again, and may find another sum. And sums
    lie so dense that a snap to the nearest would remove little noise. So latents are decoded as they are, not snapped.

    Args:
        latent_channels: number of latent channels d.
        depth: number of codewords D per position, and of tokens.
        codebook_size: number of codewords K of a codebook.
        shared_codebook: whether all depths have one codebook, as published. Otherwise each has its own.
        ema_decay: a number between 0 and 1 for EMA updates as published, None to learn codewords by gradient.
        commitment_weight: weight of the mean over depths of mean((z - sg[sum so far])^2).
        codebook_weight: weight of the mean over depths of mean((sg[z] - sum so far)^2), in which each codeword learns
            from its own depth only. There is no such term with `ema_decay`.

    Raises:
        ValueError: if a number is out of range.
    """

    fp32_tensors = ("codebooks", *EMA_TENSORS)
    can_restart = True
    latents_tell_tokens = False

    def __init__(
        self,
        latent_channels: int,
        depth: int,
        codebook_size: int,
        shared_codebook: bool = True,
        ema_decay: float | None = 0.99,
        commitment_weight: float = 0.25,
        codebook_weight: float = 1.0,
    ):
        super().__init__()
        for name, value in (("latent_channels", latent_channels), ("depth", depth), ("codebook_size", codebook_size)):
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1")
        check_weights(commitment_weight=commitment_weight, codebook_weight=codebook_weight)
        check_decay(ema_decay)
        self.in_channels = self.code_channels = self.latent_channels = latent_channels
        self.depth, self.codebook_size, self.shared_codebook = depth, codebook_size, shared_codebook
        self.ema_decay, self.commitment_weight = ema_decay, commitment_weight
        self.codebook_weight = codebook_weight if ema_decay is None else 0.0
        number = 1 if shared_codebook else depth
        register_codebooks(self, torch.randn(number, codebook_size, latent_channels), ema_decay)

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        return (self.codebook_size,) * self.depth

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        self._check(z, self.in_channels, "z")
        rest = z.flatten(2)[:, None].float()  # (B, 1, d, h w)
        total, losses, indices, counts, sums = torch.zeros_like(rest), [], [], [], []
        for level in range(self.depth):
            table = self._table(level)
            _, loss, chosen, uses, residuals = quantize_product(
                rest, table, self.commitment_weight, self.codebook_weight
            )
            codewords = look_up(table.detach().float(), chosen)
            rest, total = rest - codewords, total + codewords
            for found, new in ((losses, loss), (indices, chosen), (counts, uses), (sums, residuals)):
                found.append(new)
        if self.training and self.ema_decay is not None:
            counts, sums = torch.cat(counts), torch.cat(sums)  # (D, K), (D, K, d)
            if self.shared_codebook:
                counts, sums = counts.sum(dim=0, keepdim=True), sums.sum(dim=0, keepdim=True)
            update_ema(self, counts, sums, self.ema_decay)
        codes = total[:, 0].unflatten(2, z.shape[2:]).to(z.dtype) + (
            z - z.detach()
        )  # the sums, with the gradient of z
        tokens = torch.cat(indices, dim=1).unflatten(2, z.shape[2:])
        return QuantizerOutput(codes, tokens, torch.stack(losses).mean(), {})

    def encode(self, z: torch.Tensor) -> torch.Tensor:
        self._check(z, self.in_channels, "z")
        rest, indices = z.detach().flatten(2)[:, None].float(), []
        for level in range(self.depth):
            indices.append(nearest_codewords(rest, self._table(level)))
            rest = rest - look_up(self._table(level).detach().float(), indices[-1])
        return torch.cat(indices, dim=1).unflatten(2, z.shape[2:])

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        self._check_indices(indices)
        tables = self.codebooks.float().expand(self.depth, -1, -1)
        codewords = look_up(tables, indices.flatten(2).long())  # (B, D, d, h w)
        total = torch.zeros_like(codewords[:, 0])
        for level in range(self.depth):  # in the order of `forward`: the same last bits
            total = total + codewords[:, level]
        return total.unflatten(2, indices.shape[2:])

    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """Greedy: not always the nearest sum."""
        self._check(latents, self.latent_channels, "latents")
        return self.encode(latents)

    def snap(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """The latents, fp32: see the class."""
        self._check(latents, self.latent_channels, "latents")
        return self.lift(latents)

    @torch.no_grad()
    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        """To what the depths before leave; one codebook for all depths takes from every depth."""
        self._check(z, self.in_channels, "z")
        rest, vectors = z.flatten(2)[:, None].float(), []
        for level in range(self.depth):
            vectors.append(rest[:, 0].movedim(1, 2).flatten(0, 1))  # (N, d)
            rest = rest - look_up(self._table(level).float(), nearest_codewords(rest, self._table(level)))
        unused, vectors = torch.stack(unused), torch.stack(vectors)  # (D, K), (D, N, d)
        if self.shared_codebook:
            unused, vectors = unused.all(dim=0, keepdim=True), vectors.flatten(0, 1)[None]
        return [("codebooks", move_unused(self.codebooks, unused, vectors, generator)), *restart_ema(self, unused)]

    def extra_repr(self) -> str:
        return (
            f"{self.latent_channels}, depth={self.depth}, codebook_size={self.codebook_size}, "
            f"shared_codebook={self.shared_codebook}, ema_decay={self.ema_decay}, "
            f"commitment_weight={self.commitment_weight}, codebook_weight={self.codebook_weight}"
        )

    def _table(self, level: int) -> torch.Tensor:
        """Codebook of a depth `(1, K, d)`."""
        return self.codebooks if self.shared_codebook else self.codebooks[level : level + 1]
