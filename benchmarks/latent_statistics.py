"""Second-order statistics of latents `(B, d, h, w)`, gathered batch by batch in fp64."""

import torch

BANDS = {"low": (0.0, 1 / 3), "mid": (1 / 3, 2 / 3), "high": (2 / 3, 2.0)}  # max(|fx|, |fy|) in Nyquist frequencies


class LatentMoments:
    """Means and covariances of the channels over all positions."""

    def __init__(self):
        self.count, self.sum, self.outer = 0, 0.0, 0.0

    def update(self, latents: torch.Tensor) -> None:
        rows = latents.double().transpose(0, 1).flatten(1)  # (d, B h w)
        self.count += rows.shape[1]
        self.sum = self.sum + rows.sum(1)
        self.outer = self.outer + rows @ rows.T

    @property
    def mean(self) -> torch.Tensor:
        """(d,) fp64."""
        return self.sum / self.count

    @property
    def covariance(self) -> torch.Tensor:
        """(d, d) fp64, of the data themselves (divided by their number)."""
        return self.outer / self.count - torch.outer(self.mean, self.mean)

    @property
    def deviation(self) -> float:
        """Root of the mean variance of the channels."""
        return float(self.covariance.diagonal().mean().clamp_min(0).sqrt())

    def compute(self) -> dict[str, float | list[float]]:
        """`channel_variance` (d numbers) and its extremes, `mean_abs_correlation` of pairs of channels, and effective
        ranks: exp of the entropy of the normalized eigenvalues of the covariance and of the correlation matrix.
        """
        covariance = self.covariance
        variance = covariance.diagonal().clamp_min(0)
        std = variance.sqrt()
        scale = torch.where(std > 0, 1 / std, 0.0)  # a constant channel correlates with nothing
        correlation = scale[:, None] * covariance * scale
        channels = len(variance)
        pairs = max(1, channels * (channels - 1))
        off_diagonal = correlation.abs().sum() - correlation.diagonal().abs().sum()
        return {
            "channel_variance": [_significant(value) for value in variance.tolist()],
            "variance_min": _significant(float(variance.min())),
            "variance_median": _significant(float(variance.median())),
            "variance_max": _significant(float(variance.max())),
            "mean_abs_correlation": round(float(off_diagonal) / pairs, 4),
            "effective_rank": round(effective_rank(covariance), 2),
            "effective_rank_of_correlation": round(effective_rank(correlation), 2),
        }


class LatentSpectrum:
    """Power over spatial frequencies and likeness of neighbors, all channels by their variance."""

    def __init__(self):
        self.power, self.count = 0.0, 0
        self.neighbors = torch.zeros(2, dtype=torch.float64)  # sums of products, and of squares of the same positions

    def update(self, latents: torch.Tensor, mean: torch.Tensor) -> None:
        """Take in latents whose channels have the means `(d,)` over the whole data. All must be of one size.

        Raises:
            ValueError: if a side is shorter than two positions.
        """
        if min(latents.shape[2:]) < 2:
            raise ValueError(f"latents must have at least 2 x 2 positions, got {tuple(latents.shape[2:])}")
        z = latents.double() - mean[:, None, None]
        self.power = self.power + torch.fft.fft2(z, norm="ortho").abs().square().sum((0, 1))
        self.count += z.shape[0] * z.shape[1]
        for first, second in ((z[..., 1:], z[..., :-1]), (z[..., 1:, :], z[..., :-1, :])):
            self.neighbors[0] += (first * second).sum()
            self.neighbors[1] += (first.square().sum() + second.square().sum()) / 2

    def compute(self) -> dict:
        """`power` by band, relative to white noise of the same variance (what a photo has everywhere counts as
        low); `share` of the power in each band; `lag_1_autocorrelation` of horizontal and vertical neighbors.
        """
        height, width = self.power.shape
        fy, fx = (torch.fft.fftfreq(side, dtype=torch.float64).abs() * 2 for side in (height, width))
        frequency = torch.maximum(fy[:, None], fx[None])  # (h, w), 1 at Nyquist
        power, share, total = {}, {}, float(self.power.sum())
        for name, (low, high) in BANDS.items():
            band = self.power[(frequency >= low) & (frequency < high)]
            share[name] = round(float(band.sum()) / total, 5) if total else None
            power[name] = _significant(float(band.mean()) * height * width / total) if len(band) and total else None
        product, square = self.neighbors.tolist()
        return {
            "power": power,
            "share": share,
            "lag_1_autocorrelation": round(product / square, 4) if square else None,
        }


def effective_rank(matrix: torch.Tensor) -> float:
    """exp of the entropy of the normalized eigenvalues of a covariance matrix `(d, d)`: d if all are equal, 0 for none."""
    values = torch.linalg.eigvalsh(matrix).clamp_min(0)
    if not values.sum() > 0:
        return 0.0
    values = values / values.sum()
    return float(torch.exp(-torch.xlogy(values, values).sum()))


def _significant(value: float) -> float:
    return float(f"{value:.4g}")
