"""Exponential moving average of a model: parameters and buffers, in fp32."""

import copy

import torch
from torch import nn


class EMA:
    """Keeps `average`, a copy of a model that follows it slowly.

    diffusers' `EMAModel` leaves buffers alone; codebooks that are buffers would then not belong to the weights.

    Args:
        model: unwrapped model to follow.
        decay: weight of the past, in (0, 1). The first steps use (1 + step) / (10 + step) if that is smaller.
    """

    def __init__(self, model: nn.Module, decay: float):
        if not 0 < decay < 1:
            raise ValueError(f"decay ({decay}) must be between 0 and 1; leave EMA out for no average")
        self.decay = decay
        self.average = copy.deepcopy(model).float().eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Take in the weights of `model` after step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        new, floats = model.state_dict(), ([], [])
        for name, old in self.average.state_dict().items():
            if old.is_floating_point():
                floats[0].append(old)
                floats[1].append(new[name].to(old))
            else:
                old.copy_(new[name])
        torch._foreach_lerp_(*floats, 1 - decay)
