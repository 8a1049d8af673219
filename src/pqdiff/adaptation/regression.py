"""Closed forms for the projections of a widened UNet whose backbone is frozen.

Freeze-then-finetune (PQGAN paper, section 3) trains conv_in and conv_out by gradient steps while all else is frozen.
conv_out is then a linear regression, and conv_in can start from one. Both are solved here from streamed normal
equations: memory does not grow with the data.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

_CHUNK_ELEMENTS = 2**22  # float64 numbers in work at a time, 32 MiB


class ConvInRegression:
    """Affine map from new latents to the old latents of the same images, position by position.

    A map with a spatial kernel would fit better, but followed by conv_in it would not be a conv_in of the same size.
    The grids of the pairs must match: give the two autoencoders the image in sizes that make them.

    Args:
        new_channels: channels d of the latents that the UNet is to be widened to.
        old_channels: channels c of the latents that it knows.
    """

    def __init__(self, new_channels: int, old_channels: int):
        self._equations = RidgeEquations(new_channels, old_channels)

    def update(self, new_latents: torch.Tensor, old_latents: torch.Tensor) -> None:
        """Take in pairs `(B, d, h, w)` and `(B, c, h, w)`, scaled as the diffusion models see them, any float dtype.

        Raises:
            ValueError: if the shapes do not fit, or a value is not finite.
        """
        equations = self._equations
        expected = (len(new_latents), equations.num_targets, *new_latents.shape[2:])
        if new_latents.ndim != 4 or new_latents.shape[1] != equations.num_features or old_latents.shape != expected:
            raise ValueError(
                f"new_latents {tuple(new_latents.shape)} and old_latents {tuple(old_latents.shape)} must be (B, "
                f"{equations.num_features}, h, w) and (B, {equations.num_targets}, h, w) on the same grid: resize the "
                "images so that both autoencoders give it"
            )
        features, targets = (x.detach().movedim(1, -1).flatten(0, 2) for x in (new_latents, old_latents))
        rows = max(1, _CHUNK_ELEMENTS // equations.width)
        for x, y in zip(features.split(rows), targets.split(rows), strict=True):
            equations.update(x, y)

    def solve(self, ridge: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `(c, d)` and bias `(c,)`, fp32, on the CPU, for `widen_unet(..., init="lstsq", conv_in_map=...)`.

        Args:
            ridge: penalty, as a fraction of the new channels' mean variance. It keeps channels of little variance,
                which noise drowns first, from being amplified.

        Raises:
            ValueError: if there is too little data.
        """
        return tuple(solution.float().cpu() for solution in self._equations.solve(ridge))


class ConvOutRegression:
    """conv_out with the least mean squared error for a frozen UNet: where training conv_out alone would end.

    Features are the UNet's last activations under the kernel of conv_out, 9 x 320 of them in Stable Diffusion, and a
    constant. Their products are summed in float64: 72 MiB there for 128 channels, and as much again to solve.

    Args:
        unet: widened model. Its conv_in should be the one that is kept; conv_out's weights do not matter.

    Raises:
        ValueError: if conv_out is not a plain layer.
    """

    def __init__(self, unet: UNet2DConditionModel):
        conv = unet.conv_out
        if not isinstance(conv, nn.Conv2d):
            raise ValueError(
                f"unet.conv_out ({type(conv).__module__}.{type(conv).__name__}) must be a torch.nn.Conv2d: solve "
                "before LoRA adapters replace it"
            )
        self.unet = unet
        self._equations = RidgeEquations(conv.weight[0].numel(), conv.out_channels)

    @torch.no_grad()
    def update(
        self,
        noisy_latents: torch.Tensor,
        timesteps: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        target: torch.Tensor,
        weights: torch.Tensor | None = None,
    ) -> None:
        """Run the UNet on a batch and take in its last activations and what conv_out should make of them.

        Args:
            noisy_latents: input of the UNet `(B, in_channels, h, w)`.
            timesteps: `(B,)`.
            encoder_hidden_states: text embeddings `(B, tokens, width)`.
            target: noise, velocity or latents, as the scheduler's prediction type wants, `(B, d, h, w)`.
            weights: the loss's weight `(B,)` of each sample, at least 0.

        Raises:
            ValueError: if shapes do not fit, a weight is negative, or a value is not finite.
        """
        conv, dtype = self.unet.conv_out, self.unet.dtype
        batch = len(noisy_latents)
        expected = (batch, conv.out_channels, *noisy_latents.shape[2:])
        if target.shape != expected:
            raise ValueError(f"target has shape {tuple(target.shape)}, but the UNet gives {expected}")
        if weights is None:
            weights = target.new_ones(batch)
        if weights.shape != (batch,) or (weights < 0).any():
            raise ValueError(f"weights {tuple(weights.shape)} must be ({batch},), one per sample, and not negative")
        caught = []
        hook = conv.register_forward_pre_hook(lambda module, inputs: caught.append(inputs[0]))
        try:
            self.unet(noisy_latents.to(dtype), timesteps, encoder_hidden_states=encoder_hidden_states.to(dtype))
        finally:
            hook.remove()
        for part in _chunks(caught[0], target, weights, conv.kernel_size, conv.padding, self._equations.width):
            self._equations.update(*part)

    @torch.no_grad()
    def solve(self, ridge: float = 1e-4) -> None:
        """Write the solution into conv_out, in its dtype.

        Args:
            ridge: penalty on the weights, as a fraction of the features' mean variance.

        Raises:
            ValueError: if there is too little data.
        """
        conv = self.unet.conv_out
        weight, bias = self._equations.solve(ridge)
        conv.weight.copy_(weight.view_as(conv.weight))
        conv.bias.copy_(bias)


class RidgeEquations:
    """Streaming ridge regression of several targets at once, with weights per row and an intercept without penalty.

    Args:
        num_features: length of a row of features.
        num_targets: length of a row of targets.
    """

    def __init__(self, num_features: int, num_targets: int):
        self.num_features = num_features
        self.num_targets = num_targets
        self.width = num_features + 1 + num_targets
        self._products: torch.Tensor | None = None  # of rows [features, 1, targets], float64

    def update(self, features: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor | None = None) -> None:
        """Take in rows `(n, num_features)`, `(n, num_targets)` and their weights `(n,)`, any float dtype.

        Raises:
            ValueError: if a value is not finite.
        """
        # Apple's GPUs have no float64.
        device = torch.device("cpu") if features.device.type == "mps" else features.device
        features, targets = (x.to(device).double() for x in (features, targets))
        rows = torch.cat([features, features.new_ones(len(features), 1), targets], dim=1)
        if not rows.isfinite().all():
            raise ValueError(
                "features or targets hold NaN or infinity: a UNet in fp16 may overflow, run it in bf16 or fp32"
            )
        if self._products is None:
            self._products = rows.new_zeros(self.width, self.width)
        left = rows if weights is None else rows * weights.to(rows)[:, None]
        self._products.addmm_(left.T, rows)

    def solve(self, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight `(num_targets, num_features)` and bias `(num_targets,)`, float64.

        Args:
            ridge: penalty, as a fraction of the features' mean variance; 0 for plain least squares, which needs more
                rows than features.

        Raises:
            ValueError: if `ridge` is negative, or the equations have no unique solution.
        """
        if not ridge >= 0:
            raise ValueError(f"ridge ({ridge}) must be at least 0")
        mean, covariance = self._moments()
        f = self.num_features
        penalized = covariance[:f, :f].clone()
        diagonal = penalized.diagonal()
        diagonal += ridge * diagonal.mean()
        factor, failed = torch.linalg.cholesky_ex(penalized)
        if failed:
            raise ValueError(
                f"{f} features cannot be told apart in the data: give more of it or raise ridge ({ridge})"
            )
        weight = torch.cholesky_solve(covariance[:f, f:], factor).T
        return weight, mean[f:] - weight @ mean[:f]

    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Weighted mean and covariance of rows [features, targets]."""
        products, f = self._products, self.num_features
        if products is None or products[f, f] <= 0:
            raise ValueError("there is nothing to solve: call update with data first")
        others = torch.arange(self.width, device=products.device) != f
        mean = products[f, others] / products[f, f]
        return mean, products[others][:, others] / products[f, f] - mean[:, None] * mean


def _chunks(hidden, target, weights, kernel, padding, width: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Rows of features, targets and weights, one per position, as many at a time as memory should hold.

    Features `(n, C x kernel)` are what a convolution with this kernel and zero padding sees, in its weights' order.
    """
    hidden = F.pad(hidden, (padding[1], padding[1], padding[0], padding[0]))
    height, columns = target.shape[2:]
    samples = max(1, _CHUNK_ELEMENTS // (width * height * columns))
    band = max(1, _CHUNK_ELEMENTS // (width * columns))  # rows of the image, if one sample is too much
    for h, y, w in zip(hidden.split(samples), target.split(samples), weights.split(samples), strict=True):
        for top in range(0, height, band):
            targets = y[:, :, top : top + band]  # (b, d, rows, w)
            seen = h[:, :, top : top + targets.shape[2] + kernel[0] - 1]
            # Not everywhere is there an unfold for fp16 and bf16.
            seen = seen.to(torch.promote_types(seen.dtype, torch.float32))
            features = F.unfold(seen, kernel).movedim(1, -1).flatten(0, 1)
            targets = targets.movedim(1, -1).flatten(0, 2)
            yield features, targets, w.repeat_interleave(len(targets) // len(w))
