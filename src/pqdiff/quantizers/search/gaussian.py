"""Search for Gaussian quantizers: the codeword that is likely under a posterior and unlikely under the prior.

Xu, Zheng, He, et al.: Vector Quantization using Gaussian Variational Autoencoder (Gaussian Quant, arXiv 2512.06609).
The score is quadratic in the codeword, so it is a matrix product of (beta - 1 / sigma^2, 2 mu / sigma^2) with (c^2,
c). The reference implementation keeps the scores of all codewords; here a tile is reduced to its two best. Small
variances make the product lose digits: rows whose two best scores are closer than rounding can tell apart are searched
again in float64, and, if that leaves a doubt too, with direct differences. So the answer is exact.
"""

import torch

from pqdiff.quantizers.search.exact_matmul import exact_matmul

_TILE_CODEWORDS = 2048
# Scores that are held at once.
_SCRATCH_FLOATS = {"cpu": 2**18}
_SCRATCH_FLOATS_ACCELERATOR = 2**26


@torch.library.custom_op("pqdiff::likeliest_codewords", mutates_args=())
def likeliest_codewords(
    mean: torch.Tensor, log_variance: torch.Tensor, codewords: torch.Tensor, beta: float
) -> torch.Tensor:
    """Index of the codeword c of largest sum_i [log N(c_i; mean_i, variance_i) - beta log N(c_i; 0, 1)], per vector.

    Beside a few copies of its input it uses memory for `_SCRATCH_FLOATS` scores, whatever the number of codewords.

    Args:
        mean: `(B, G, m, N)`, any floating dtype; the score is computed in fp32 and, in doubt, in float64.
        log_variance: `(B, G, m, N)`.
        codewords: `(K, m)`, the same for all groups.
        beta: weight of the prior.

    Returns:
        int64 indices in `[0, K)` of shape `(B, G, N)`. Equal scores give the lowest index, vectors with NaN give 0.
    """
    if (
        mean.ndim != 4
        or mean.shape != log_variance.shape
        or codewords.ndim != 2
        or mean.shape[2] != codewords.shape[1]
    ):
        raise ValueError(
            f"mean {tuple(mean.shape)} and log_variance {tuple(log_variance.shape)} must be (B, G, m, N) for codewords "
            f"(K, m), got {tuple(codewords.shape)}"
        )
    if not len(codewords):
        raise ValueError("codewords must hold at least one codeword")
    if mean.device.type == "mps":  # has no float64
        return likeliest_codewords(mean.cpu(), log_variance.cpu(), codewords.cpu(), beta).to(mean.device)
    batch, groups, dim, number = mean.shape
    with torch.no_grad(), torch.autocast(mean.device.type, enabled=False), exact_matmul():
        mean, log_variance = (x.detach().float().transpose(2, 3).reshape(-1, dim) for x in (mean, log_variance))
        codewords = codewords.detach().float()
        indices = torch.full((len(mean),), -1, dtype=torch.int64, device=mean.device)
        indices[~(mean + log_variance).isfinite().all(dim=1)] = 0
        scratch = _scratch_floats(mean.device)
        for search in (
            _Products(codewords, beta, torch.float32),
            _Products(codewords, beta, torch.float64),
            _Direct(codewords, beta),
        ):
            doubtful = (indices < 0).nonzero()[:, 0]
            for rows in doubtful.split(max(1, scratch // min(len(codewords), _TILE_CODEWORDS))):
                indices[rows] = search(mean[rows], log_variance[rows])
        return indices.view(batch, groups, number)


@likeliest_codewords.register_fake
def _(mean, log_variance, codewords, beta):
    return mean.new_empty((mean.shape[0], mean.shape[1], mean.shape[3]), dtype=torch.int64)


def _scratch_floats(device: torch.device) -> int:
    return _SCRATCH_FLOATS.get(device.type, _SCRATCH_FLOATS_ACCELERATOR)


class _Products:
    """Scores as matrix products in `dtype`. An index is -1 where rounding leaves it in doubt."""

    def __init__(self, codewords: torch.Tensor, beta: float, dtype: torch.dtype):
        self.codewords, self.beta, self.dtype = codewords, beta, dtype
        largest = codewords.abs().amax(dim=0).to(dtype)
        self.largest = torch.cat([largest.square(), largest])  # (2 m,)

    def __call__(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """Indices `(n,)` of rows `(n, m)`."""
        mean, precision = mean.to(self.dtype), (-log_variance.to(self.dtype)).exp()
        factors = torch.cat([self.beta - precision, 2 * mean * precision], dim=1)  # (n, 2 m)
        best, index = factors.new_empty(len(factors), 0), mean.new_empty(len(factors), 0, dtype=torch.int64)
        for start in range(0, len(self.codewords), _TILE_CODEWORDS):
            tile = self.codewords[start : start + _TILE_CODEWORDS].to(self.dtype)
            scores = factors @ torch.cat([tile.square(), tile], dim=1).T  # (n, k)
            values, positions = scores.topk(min(2, len(tile)), dim=1)
            best, order = torch.cat([best, values], dim=1).topk(min(2, best.shape[1] + values.shape[1]), dim=1)
            index = torch.cat([index, positions + start], dim=1).gather(1, order)
        if best.shape[1] == 1:
            return index[:, 0]
        # Each term of a score carries a few roundings of its own and one for each addition.
        roundings = (factors.shape[1] + 8) * torch.finfo(self.dtype).eps / 2
        margin = 2 * roundings * (factors.abs() @ self.largest)
        certain = best[:, 0] > best[:, 1] + margin  # False for NaN
        return index[:, 0].masked_fill_(~certain, -1)


class _Direct:
    """Scores as sums of direct differences in float64, which cannot cancel; slow."""

    def __init__(self, codewords: torch.Tensor, beta: float):
        self.codewords, self.beta = codewords, beta

    def __call__(self, mean: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        """Indices `(n,)` of rows `(n, m)`."""
        mean, precision = mean.double()[:, None], (-log_variance.double()).exp()[:, None]  # (n, 1, m)
        best = torch.full((len(mean),), -torch.inf, dtype=torch.float64, device=mean.device)
        index = torch.zeros_like(best, dtype=torch.int64)
        step = max(1, _scratch_floats(mean.device) // max(1, mean.numel()))
        for start in range(0, len(self.codewords), step):
            tile = self.codewords[start : start + step].double()
            scores = (tile.square() * self.beta - (tile - mean).square_() * precision).sum(dim=2)  # (n, k)
            value, position = scores.max(dim=1)  # the first of equals
            better = value > best  # strict: an equal score keeps the lower index
            best, index = torch.where(better, value, best), torch.where(better, position + start, index)
        return index
