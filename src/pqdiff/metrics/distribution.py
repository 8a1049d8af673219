"""How far two sets of images are apart, by features of a network, and how good a set is on its own.

The metrics see features and logits, not images: `pqdiff.metrics.features` makes them, once for all metrics. Sums are in
float64. Nothing depends on the order of the images, on batches, or on how many processes share them. With fewer images
than a metric needs it gives NaN.
"""

import torch
from torchmetrics import Metric

_CHUNK = 1024  # rows of a kernel matrix at a time: 50,000 columns in float64 are 400 MB


class FrechetDistance(Metric):
    """Frechet distance of two Gaussians that have the sets' means and covariances. Lower is better, 0 at best.

    |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) with unbiased covariances (Heusel et al., arXiv 1706.08500, Eq. (6)). It is
    FID if the features are those of FID's Inception, and for reconstructions rFID. It is biased upwards for small sets, so
    only numbers of equally many images compare. Memory does not grow with the number of images.

    Args:
        dim: number of features D, from 1.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, dim: int, **kwargs):
        super().__init__(**kwargs)
        for side in ("reference", "result"):
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_sum", torch.zeros(dim, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.zeros(dim, dim, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, reference: torch.Tensor | None = None, result: torch.Tensor | None = None) -> None:
        """Add features `(B, D)` to either set or to both."""
        for side, features in (("reference", reference), ("result", result)):
            if features is not None:
                features = features.double()
                getattr(self, f"{side}_count").add_(len(features))
                getattr(self, f"{side}_sum").add_(features.sum(0))
                getattr(self, f"{side}_products").addmm_(features.T, features)

    def compute(self) -> torch.Tensor:
        """The distance as float64 `()`, NaN if a set has fewer than two images."""
        (mean_1, factor_1), (mean_2, factor_2) = self._gaussian("reference"), self._gaussian("result")
        if factor_1 is None or factor_2 is None:
            return mean_1.new_full((), torch.nan)
        # With C = A A^T the trace of (C1 C2)^(1/2) is the sum of the singular values of A1^T A2. Roots of eigenvalues of
        # C1 C2 would turn rounding errors of 1e-16 into 1e-8.
        overlap = torch.linalg.svdvals(factor_1.T @ factor_2).sum()
        return (mean_1 - mean_2).square().sum() + factor_1.square().sum() + factor_2.square().sum() - 2 * overlap

    def _gaussian(self, side: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Mean `(D,)` and a factor A `(D, rank)` with covariance A A^T."""
        count, total, products = (getattr(self, f"{side}_{name}") for name in ("count", "sum", "products"))
        mean = total / count
        if count < 2:
            return mean, None
        values, vectors = torch.linalg.eigh((products - count * mean.outer(mean)) / (count - 1))
        values = values.clamp_min(0)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps  # the others are rounding errors
        return mean, vectors[:, kept] * values[kept].sqrt()


class _FeatureSets(Metric):
    """Keeps the features of both sets in fp32, because the metric compares every image with every other.

    Metrics that are given the same tensors share their memory until they exchange them between processes.
    """

    is_differentiable = False
    full_state_update = False

    def __init__(self, dim: int, **kwargs):
        super().__init__(**kwargs)
        self._empty = torch.zeros(0, dim)
        for side in ("reference", "result"):
            self.add_state(side, [], dist_reduce_fx="cat")

    def update(self, reference: torch.Tensor | None = None, result: torch.Tensor | None = None) -> None:
        """Add features fp32 `(B, D)` to either set or to both."""
        for side, features in ((self.reference, reference), (self.result, result)):
            if features is not None:
                side.append(features)

    def sync(self, *args, **kwargs) -> None:
        # A process that has no images takes part in the exchange with an empty table of the right shape.
        for side in ("reference", "result"):
            if not self._is_synced and not getattr(self, side):
                setattr(self, side, [self._empty.to(self.device)])
        super().sync(*args, **kwargs)

    def _sets(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Features of the reference and of the result: both float64 `(N, D)`."""
        sets = (
            side if isinstance(side, torch.Tensor) else torch.cat([self._empty.to(self.device), *side])
            for side in (self.reference, self.result)
        )
        return tuple(features.double() for features in sets)


class KernelDistance(_FeatureSets):
    """Squared maximum mean discrepancy with the kernel (a.b / D + 1)^3. Lower is better; unbiased, so it may be below 0.

    It is KID (Binkowski et al., arXiv 1801.01401) if the features are those of FID's Inception. This is the U-statistic of
    all pairs. Other programs average 100 random subsets of 1000 images, which has the same expectation and more variance.
    """

    higher_is_better = False

    def compute(self) -> torch.Tensor:
        """The distance as float64 `()`, NaN if a set has fewer than two images."""
        x, y = self._sets()
        if min(len(x), len(y)) < 2:
            return x.new_full((), torch.nan)

        def total(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return sum(((rows @ b.T) / b.shape[1] + 1).pow(3).sum() for rows in a.split(_CHUNK))

        def others(a: torch.Tensor) -> torch.Tensor:
            """Mean over pairs of different images."""
            own = (a.square().sum(1) / a.shape[1] + 1).pow(3).sum()
            return (total(a, a) - own) / (len(a) * (len(a) - 1))

        return others(x) + others(y) - 2 * total(x, y) / (len(x) * len(y))


class CMMD(_FeatureSets):
    """1000 times the squared maximum mean discrepancy with a Gaussian kernel of standard deviation 10. Lower is better.

    Jayasumana et al., arXiv 2401.09603, for features of CLIP that have norm 1. This is the V-statistic (pairs of an image
    with itself count), as in the paper's code: it is never negative. To first order it is 10 |difference of means|^2.
    """

    higher_is_better = False
    sigma = 10.0
    scale = 1000.0

    def compute(self) -> torch.Tensor:
        """The distance as float64 `()`, NaN if a set is empty."""
        x, y = self._sets()

        def mean_less_one(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            """Mean kernel less 1. All kernels are near 1, and their ones cancel: `expm1` keeps what is left."""
            sums = [torch.expm1(_squared_distances(rows, b) / (-2 * self.sigma**2)).sum() for rows in a.split(_CHUNK)]
            return sum(sums, a.new_zeros(())) / (len(a) * len(b)) if len(a) and len(b) else a.new_full((), torch.nan)

        return self.scale * (mean_less_one(x, x) + mean_less_one(y, y) - 2 * mean_less_one(x, y))


class PrecisionRecall(_FeatureSets):
    """Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991). Both are in [0, 1]; higher is better.

    An image covers the ball that reaches to its k-th nearest neighbor in its own set. Precision is the part of the results
    inside balls of the reference, recall the part of the reference inside balls of the results.

    Args:
        dim: number of features.
        k: number of neighbors.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = True

    def __init__(self, dim: int, k: int = 3, **kwargs):
        super().__init__(dim, **kwargs)
        self.k = k

    def compute(self) -> dict[str, torch.Tensor]:
        """`precision` and `recall` as float64 `()`, NaN if a set has no k + 1 images."""
        x, y = self._sets()
        if min(len(x), len(y)) <= self.k:
            return dict.fromkeys(("precision", "recall"), x.new_full((), torch.nan))
        return {"precision": self._covered(y, x), "recall": self._covered(x, y)}

    def _covered(self, points: torch.Tensor, centers: torch.Tensor) -> torch.Tensor:
        # The nearest of an image's own set is the image itself.
        nearest = [
            _squared_distances(rows, centers).topk(self.k + 1, largest=False)[0] for rows in centers.split(_CHUNK)
        ]
        radii = torch.cat(nearest)[:, -1]
        inside = [(_squared_distances(rows, centers) <= radii).any(1) for rows in points.split(_CHUNK)]
        return torch.cat(inside).double().mean()


class InceptionScore(Metric):
    """exp of the mean divergence of an image's classes from those of its set (Salimans et al., arXiv 1606.03498).

    It is the mean over splits; higher is better, from 1 to the number of classes. An image goes to the split that a hash of
    its logits names, so that the order of the images makes no difference and memory does not grow with them.

    Args:
        num_classes: number of classes.
        splits: number of splits. Sets of a few hundred images should have one.
        kwargs: arguments of `torchmetrics.Metric`.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, num_classes: int, splits: int = 10, **kwargs):
        super().__init__(**kwargs)
        self.add_state("count", torch.zeros(splits, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("probabilities", torch.zeros(splits, num_classes, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("negative_entropies", torch.zeros(splits, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: torch.Tensor) -> None:
        """Add logits fp32 `(B, num_classes)`."""
        split = _hashes(logits) % len(self.count)
        p = logits.double().softmax(1)
        self.count = self.count + torch.bincount(split, minlength=len(self.count))
        self.probabilities = self.probabilities.index_add(0, split, p)
        self.negative_entropies = self.negative_entropies.index_add(0, split, torch.xlogy(p, p).sum(1))

    def compute(self) -> torch.Tensor:
        """The score as float64 `()`, NaN if there are no images. Splits without images do not count."""
        used = self.count > 0
        count = self.count[used]
        marginal = self.probabilities[used] / count[:, None]
        divergence = self.negative_entropies[used] / count - torch.xlogy(marginal, marginal).sum(1)
        return divergence.exp().mean()


def _squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Squared distances `(n, m)` of rows `(n, D)` and `(m, D)`."""
    return (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min_(0)


def _hashes(values: torch.Tensor) -> torch.Tensor:
    """A number from 0 to 2^32 - 1 for each row of fp32 values `(B, C)`: int64 `(B,)`."""
    bits = values.contiguous().view(torch.int32).long()
    factors = torch.arange(1, 2 * bits.shape[1], 2, device=bits.device) * 0x9E3779B97F4A7C1 + 1
    mixed = (bits * (factors | 1)).sum(1)  # modulo 2^64
    mixed = (mixed ^ (mixed >> 29)) * 0x2545F4914F6CDD1D
    return (mixed >> 32) & 0xFFFFFFFF
