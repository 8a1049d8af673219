"""Exponential moving average (EMA) of a model: of parameters and buffers, in fp32."""

import copy

import torch
from torch import nn


class EMA:
    """Keeps `model`, a copy of a model whose weights follow the original slowly.

    The `EMAModel` of diffusers does not follow buffers; codebooks that are buffers would then not fit the weights.

    Args:
        model: unwrapped model to follow.
        decay: weight of the past, between 0 and 1. The first steps use (1 + step) / (10 + step) if that is smaller.

    Raises:
        ValueError: for another decay.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"ema_decay ({decay}) must be between 0 and 1; use 0 for no EMA")
        self.decay = decay
        self.model = copy.deepcopy(model).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move towards the weights that `model` has after step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        new, floats = model.state_dict(), ([], [])
        for name, old in self.model.state_dict().items():
            if old.is_floating_point():
                floats[0].append(old)
                floats[1].append(new[name].to(old))
            else:
                old.copy_(new[name])
        torch._foreach_lerp_(*floats, 1 - decay)
