"""How many bits the tokens take, and how evenly they use their codebooks (PQGAN paper, Eq. (3))."""

import math

import torch
from torchmetrics import Metric


class _TokenCounts(Metric):
    """Counts of every value of every token: states `counts` (G, K) and `pixels` ()."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, codebook_sizes: tuple[int, ...], **kwargs):
        super().__init__(**kwargs)
        self.codebook_sizes = tuple(codebook_sizes)
        self.add_state("counts", torch.zeros(len(codebook_sizes), max(codebook_sizes), dtype=torch.int64), "sum")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, indices: torch.Tensor, num_pixels: int = 0) -> None:
        """Take in tokens `(B, G, h, w)` that stand for `num_pixels` pixels in all."""
        tokens, size = self.counts.shape
        if indices.ndim != 4 or indices.shape[1] != tokens:
            raise ValueError(f"indices must be (B, {tokens}, h, w), got {tuple(indices.shape)}")
        sizes = torch.tensor(self.codebook_sizes, device=indices.device).view(-1, 1, 1)
        if bool(((indices < 0) | (indices >= sizes)).any()):
            raise ValueError("indices are out of range for their codebooks: tokens of another model?")
        shifted = indices.transpose(0, 1).flatten(1) + torch.arange(tokens, device=indices.device)[:, None] * size
        self.counts += torch.bincount(shifted.flatten(), minlength=tokens * size).view(tokens, size)
        self.pixels += num_pixels

    def _entropies(self) -> torch.Tensor:
        """Entropy of each token in nats: (G,) float64."""
        p = self.counts.double() / self.counts.sum(dim=1, keepdim=True)
        return -torch.xlogy(p, p).sum(dim=1)


class BitsPerPixel(_TokenCounts):
    """Rate of the tokens at log2 K bits each, in bits per pixel. Lower is better."""

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """Bits of all tokens / pixels."""
        bits = sum(math.log2(size) for size in self.codebook_sizes)
        return self.counts[0].sum() * bits / self.pixels


class EntropyBitsPerPixel(_TokenCounts):
    """Rate of an ideal entropy coder that knows each token's histogram, in bits per pixel. Lower is better."""

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """Sum of the tokens' entropies in bits x positions / pixels."""
        return self.counts[0].sum() * self._entropies().sum() / math.log(2) / self.pixels


class CodebookUsage(_TokenCounts):
    """Evenness of codebook use; everything is in [0, 1], 1 where all codewords are used alike. Higher is better.

    `compute` returns a dict: `utilization` (fraction of codewords ever used), `h_n` (entropy / log K, mean over
    subspaces), `p_n` (perplexity / K, mean over subspaces), and `h_n_pooled`, `p_n_pooled` as the official code computes
    them, from one histogram over all subspaces. Pooling inflates H_n: (log S + mean H_s) / (log S + log K).
    """

    higher_is_better = True

    def compute(self) -> dict[str, torch.Tensor]:
        sizes = torch.tensor(self.codebook_sizes, dtype=torch.float64, device=self.counts.device)
        entropies = self._entropies()
        p = self.counts.double().flatten() / self.counts.sum()
        pooled = -torch.xlogy(p, p).sum()
        normalized = torch.where(sizes > 1, entropies / sizes.log().clamp_min(1e-12), 1.0)
        return {
            "utilization": (self.counts > 0).sum() / sizes.sum(),
            "h_n": normalized.mean(),
            "p_n": (entropies.exp() / sizes).mean(),
            "h_n_pooled": pooled / sizes.sum().log(),
            "p_n_pooled": pooled.exp() / sizes.sum(),
        }
