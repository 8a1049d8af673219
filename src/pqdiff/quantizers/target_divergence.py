"""Target divergence constraint (TDC): a Gaussian autoencoder's divergence held at what a codebook can code.

Xu, Zheng, He, et al.: Vector Quantization using Gaussian Variational Autoencoder (Gaussian Quant, arXiv 2512.06609),
as their code has it (`GaussianQuantRegularizer`). The reference keeps its controllers as Python floats: they were lost
when a training was resumed, and differed between processes. Here they are buffers, and all processes see the same
statistics. A bit is exactly 1 / ln 2 nats here and 1.4426 in the reference.
"""

import torch
from torch import distributed, nn

_LAM_MAX_LIMIT = 1e3
_LAM_MIN_LIMIT = 1e-3


class TargetDivergence(nn.Module):
    """Loss lam * weight * bits over groups, where weight is lam_max above the target, lam_min below and 1 near it.

    In training each call moves the three controllers by `factor`, after the loss was computed with their old values:
    lam up if the mean is above the target, else down; lam_max up, within [1, 1000], while the largest is too large, else
    down; lam_min down, within [0.001, 1], while the smallest is too small, else up.

    Args:
        target: bits that a group should have.
        tolerance: bits by which it may differ.
        factor: what controllers are multiplied or divided by, above 1.
        reduction: `sum` over groups and positions and mean over images, as published, or `mean` over all of them.

    Raises:
        ValueError: for a number out of range or an unknown reduction.
    """

    def __init__(self, target: float, tolerance: float = 0.5, factor: float = 1.01, reduction: str = "sum"):
        super().__init__()
        if not 0 <= tolerance < float("inf"):
            raise ValueError(f"tolerance ({tolerance}) must be a finite number of bits, 0 or greater")
        if not 1 < factor < float("inf"):
            raise ValueError(f"factor ({factor}) must be a finite number above 1")
        if reduction not in ("sum", "mean"):
            raise ValueError(f"reduction ({reduction!r}) must be 'sum' or 'mean'")
        self.target, self.tolerance, self.factor, self.reduction = target, tolerance, factor, reduction
        for name in ("lam", "lam_min", "lam_max"):
            self.register_buffer(name, torch.ones((), dtype=torch.float32))

    def forward(self, bits: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss `()` and logs, in training after which the controllers move.

        Args:
            bits: divergence `(B, G, N)` of each group, fp32, with gradient.

        Returns:
            The loss, and detached scalars: `kl_bits_mean`, `kl_bits_min`, `kl_bits_max` over the batch (of all processes
            in training), and the controllers that the loss was computed with.
        """
        high, low = bits > self.target + self.tolerance, bits < self.target - self.tolerance
        weights = self.lam * torch.where(high, self.lam_max, torch.where(low, self.lam_min, 1.0))
        weighted = weights * bits
        loss = weighted.mean() if self.reduction == "mean" else weighted.sum(dim=(1, 2)).mean()
        mean, least, most = self._statistics(bits.detach())
        logs = {"kl_bits_mean": mean, "kl_bits_min": least, "kl_bits_max": most}
        logs |= {f"tdc_{name}": controller.clone() for name, controller in self.named_buffers()}
        if self.training:
            self._move(mean, least, most)
        return loss, logs

    def _statistics(self, bits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Mean, minimum and maximum; in training those of all processes, which must then all call this."""
        mean, extremes = bits.mean(), torch.stack([-bits.amin(), bits.amax()])
        if self.training and distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean)
            mean = mean / distributed.get_world_size()
            distributed.all_reduce(extremes, distributed.ReduceOp.MAX)
        return mean, -extremes[0], extremes[1]

    @torch.no_grad()
    def _move(self, mean: torch.Tensor, least: torch.Tensor, most: torch.Tensor) -> None:
        up, down = self.factor, 1 / self.factor
        self.lam.mul_(torch.where(mean > self.target, up, down))
        self.lam_max.mul_(torch.where(most > self.target + self.tolerance, up, down)).clamp_(1, _LAM_MAX_LIMIT)
        self.lam_min.mul_(torch.where(least < self.target - self.tolerance, down, up)).clamp_(_LAM_MIN_LIMIT, 1)
