"""What AutoencoderPQ returns."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


class PQLatentDistribution:
    """The certain outcome of a deterministic quantizer, in the form that diffusers' pipelines and trainers expect."""

    def __init__(self, latents: torch.Tensor):
        self.latents = latents

    def sample(self, generator: torch.Generator | list[torch.Generator] | None = None) -> torch.Tensor:
        """The latents; nothing is drawn."""
        return self.latents

    def mode(self) -> torch.Tensor:
        """The latents."""
        return self.latents


@dataclass
class AutoencoderPQOutput(BaseOutput):
    """Output of `AutoencoderPQ.encode`.

    Attributes:
        latent_dist: distribution whose `sample()` and `mode()` are both `latents`.
        latents: quantized, standardized latents `(B, d, H/F, W/F)`.
        indices: int64 tokens `(B, G, H/F, W/F)`.
    """

    latent_dist: PQLatentDistribution
    latents: torch.Tensor
    indices: torch.Tensor


@dataclass
class AutoencoderPQForwardOutput(BaseOutput):
    """Output of `AutoencoderPQ.forward`.

    Attributes:
        sample: reconstruction `(B, C, H, W)`, nominally in [-1, 1], not clamped.
        commit_loss: the quantizer's weighted loss, a scalar.
        indices: int64 tokens `(B, G, H/F, W/F)`; None if the quantizer has none while it trains.
        logs: the quantizer's scalars for the training log.
    """

    sample: torch.Tensor
    commit_loss: torch.Tensor
    indices: torch.Tensor | None
    logs: dict[str, torch.Tensor]
