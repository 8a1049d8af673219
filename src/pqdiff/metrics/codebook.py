"""How many bits the tokens take, and how evenly they use their codebooks (PQGAN paper, Eq. (3)).

All metrics here come from one counter, which needs memory for codewords that exist or for values that occur, whichever is
less: a binary quantizer has 2^62 codewords, and no table of them fits anywhere.
"""

import itertools
import math

import torch
from torchmetrics import Metric

LARGEST_DENSE = 2**24  # sum of the codebook sizes up to which every codeword has a place in memory
_LARGEST_CODEBOOK = 2**62


class TokenCounts(Metric):
    """Counts how often every value of every token occurs.

    `compute` returns all rates and all numbers of codebook use: `bits_per_pixel`, `entropy_bits_per_pixel`, and
    `codebook_` with the names that `CodebookUsage` describes.

    Args:
        codebook_sizes: number of values of each of the G tokens of a position, each from 1 to 2^62.
        kwargs: arguments of `torchmetrics.Metric`.

    Attributes:
        counts: int64 `(sum of codebook_sizes,)`, one codebook after the other, if that sum is at most 2^24.
        entries: otherwise a list of int64 `(n, 3)` with rows (token, value, count). A value may be in several rows.
        pixels: int64 `()`, pixels that the counted tokens stand for.

    Raises:
        ValueError: if `codebook_sizes` is empty or a size is out of range.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, codebook_sizes: tuple[int, ...], **kwargs):
        super().__init__(**kwargs)
        self.codebook_sizes = tuple(codebook_sizes)
        for size in self.codebook_sizes or (0,):
            if not 1 <= size <= _LARGEST_CODEBOOK:
                raise ValueError(f"codebook_sizes ({self.codebook_sizes}) must be numbers from 1 to 2^62")
        self.is_dense = sum(self.codebook_sizes) <= LARGEST_DENSE
        if self.is_dense:
            self.add_state("counts", torch.zeros(sum(self.codebook_sizes), dtype=torch.int64), dist_reduce_fx="sum")
        else:
            self.add_state("entries", [], dist_reduce_fx="cat")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, indices: torch.Tensor, num_pixels: int = 0) -> None:
        """Count integer tokens `(B, G, h, w)`, which stand for `num_pixels` pixels in total.

        Raises:
            ValueError: if the shape is another, or a token is out of range for its codebook.
        """
        num_tokens = len(self.codebook_sizes)
        if indices.ndim != 4 or indices.shape[1] != num_tokens:
            raise ValueError(f"indices must be (B, {num_tokens}, h, w), got {tuple(indices.shape)}")
        values = indices.long().transpose(0, 1).flatten(1)  # (G, N)
        sizes = torch.tensor(self.codebook_sizes, device=values.device)[:, None]
        if bool(((values < 0) | (values >= sizes)).any()):
            raise ValueError("indices are out of range for their codebooks: do they come from another model?")
        if self.is_dense:
            places = (values + sizes.cumsum(0) - sizes).flatten()
            self.counts += torch.bincount(places, minlength=len(self.counts))
        else:
            tokens = torch.arange(num_tokens, device=values.device)[:, None].expand_as(values)
            rows = torch.stack([tokens, values, torch.ones_like(values)], dim=-1).flatten(0, 1)
            self.entries.append(_merge(rows))
            # Merging only when the new rows outnumber the old ones keeps the total work linear in the counted tokens.
            if sum(map(len, self.entries[1:])) > len(self.entries[0]):
                self.entries = [_merge(torch.cat(self.entries))]
        self.pixels += num_pixels

    def sync(self, *args, **kwargs) -> None:
        # A process that has counted nothing takes part in the exchange with an empty table of the right shape and dtype.
        if not self.is_dense and not self._is_synced and len(self.entries) == 0:
            self.entries.append(self._no_rows())
        super().sync(*args, **kwargs)

    @property
    def num_positions(self) -> torch.Tensor:
        """Positions that were counted, by this process outside `compute`: int64 `()`."""
        return self._occurring()[1].sum() // len(self.codebook_sizes)

    def counts_per_token(self) -> list[torch.Tensor]:
        """Counts of this process for every value of each token: G tensors int64 `(codebook size,)`, views of `counts`.

        Raises:
            ValueError: if the codebooks are too large to have a count for every value.
        """
        if not self.is_dense:
            raise ValueError(
                f"codebook_sizes sum up to {sum(self.codebook_sizes):,} values, counts_per_token takes at most "
                f"{LARGEST_DENSE:,}: use the entries"
            )
        return list(self.counts.split(self.codebook_sizes))

    def compute(self) -> torch.Tensor | dict[str, torch.Tensor]:
        """All numbers, by name. A subclass returns its own."""
        return {
            "bits_per_pixel": self._rate(),
            "entropy_bits_per_pixel": self._entropy_rate(),
            **{f"codebook_{name}": value for name, value in self._usage().items()},
        }

    def _rate(self) -> torch.Tensor:
        bits = sum(math.log2(size) for size in self.codebook_sizes)
        return self.num_positions * bits / self.pixels

    def _entropy_rate(self) -> torch.Tensor:
        bits = self._entropies(*self._occurring()).sum() / math.log(2)
        return self.num_positions * bits / self.pixels

    def _usage(self) -> dict[str, torch.Tensor]:
        tokens, counts = self._occurring()
        entropies = self._entropies(tokens, counts)
        sizes = torch.tensor(self.codebook_sizes, dtype=torch.float64, device=counts.device)
        p = counts.double() / counts.sum()
        pooled = -torch.xlogy(p, p).sum() if len(p) else entropies.sum()
        normalized = torch.where(sizes > 1, entropies / sizes.log().clamp_min(1e-12), 1.0)
        return {
            "utilization": len(counts) / sizes.sum(),
            "h_n": normalized.mean(),
            "p_n": (entropies.exp() / sizes).mean(),
            "h_n_pooled": pooled / sizes.sum().log(),
            "p_n_pooled": pooled.exp() / sizes.sum(),
        }

    def _occurring(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Token and count of every value that occurs: both int64 `(number of such values,)`."""
        if self.is_dense:
            places = self.counts.nonzero()[:, 0]
            ends = torch.tensor(list(itertools.accumulate(self.codebook_sizes)), device=places.device)
            return torch.bucketize(places, ends, right=True), self.counts[places]
        entries = (
            self.entries if isinstance(self.entries, torch.Tensor) else torch.cat([*self.entries, self._no_rows()])
        )
        tokens, _, counts = _merge(entries).unbind(1)
        return tokens, counts

    def _no_rows(self) -> torch.Tensor:
        return self.pixels.new_zeros((0, 3))

    def _entropies(self, tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Entropy of each token in nats: (G,) float64, NaN if nothing was counted."""
        p = counts.double() / self.num_positions
        entropies = p.new_zeros(len(self.codebook_sizes)).index_add(0, tokens, -torch.xlogy(p, p))
        return entropies if len(counts) else torch.full_like(entropies, float("nan"))


class BitsPerPixel(TokenCounts):
    """Rate of tokens of log2 K bits each, in bits per pixel. Lower is better."""

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """Bits of all tokens / pixels."""
        return self._rate()


class EntropyBitsPerPixel(TokenCounts):
    """Rate of an ideal entropy coder that knows the histogram of each token, in bits per pixel. Lower is better."""

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """Sum of the tokens' entropies in bits x positions / pixels."""
        return self._entropy_rate()


class CodebookUsage(TokenCounts):
    """How evenly the codebooks are used. All values are in [0, 1], and 1 if all codewords are used equally often.

    `compute` returns a dict: `utilization` (fraction of the codewords that occur), `h_n` (entropy / log K, mean over the
    tokens), `p_n` (perplexity / K, mean over the tokens), and `h_n_pooled` and `p_n_pooled`, which the official code
    computes from one histogram over all tokens. Pooling makes H_n larger: (log S + mean H_s) / (log S + log K).
    Higher is better.
    """

    higher_is_better = True

    def compute(self) -> dict[str, torch.Tensor]:
        """The five numbers as float64 `()`."""
        return self._usage()


def _merge(rows: torch.Tensor) -> torch.Tensor:
    """Rows (token, value, count) with every pair of token and value once, in order, from rows that may repeat pairs."""
    if not len(rows):
        return rows
    rows = rows[rows[:, 1].argsort(stable=True)]
    rows = rows[rows[:, 0].argsort(stable=True)]
    differs = (rows[1:, :2] != rows[:-1, :2]).any(1)
    last = torch.cat([differs, differs.new_ones(1)]).nonzero()[:, 0]  # of each pair
    totals = rows[:, 2].cumsum(0)[last]
    return torch.cat([rows[last, :2], totals.diff(prepend=totals.new_zeros(1))[:, None]], dim=1)
