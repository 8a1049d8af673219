"""How reconstructions suffer when latents are not quite right, as those of a generator never are.

Qiu et al. (arXiv 2503.08354) replace tokens by their neighbors in the codebook and call FID of the result pFID. Here
Gaussian noise on the standardized latents moves them to other codewords, which every quantizer can do. With FID's Inception
among the metrics, `rfid` at a noise level is our kind of pFID; it does not compare with theirs.
"""

import math
import zlib
from collections.abc import Sequence

import torch
from torchmetrics import Metric

from pqdiff.data.images.reading import normalize
from pqdiff.metrics.reconstructors import AutoencoderReconstructor
from pqdiff.models.autoencoder_pq import AutoencoderPQ


class NoisyReconstructor(AutoencoderReconstructor):
    """Encodes, adds noise to the latents, snaps them to the nearest codewords, and decodes.

    Latents are standardized: a level of 0.1 is a tenth of their standard deviation. An image has the same noise at all
    levels, in any batch and in any order. The tokens that it gives are those of the noisy latents.

    Args:
        model: an `AutoencoderPQ`.
        level: standard deviation of the noise, above 0.
        name: of the model; the level is added to it.
        seed: of the noise.

    Raises:
        ValueError: for another model, or a level that is not above 0.
    """

    def __init__(self, model, level: float, name: str = "", seed: int = 0):
        if not isinstance(model, AutoencoderPQ):
            raise ValueError(
                f"{name or type(model).__name__}: noise on latents needs tokens, which it does not have: leave out --noise"
            )
        _check_level(level)
        super().__init__(model, f"{name} + noise {level:g}")
        self.level, self.seed = level, seed

    def describe(self) -> dict:
        """What a protocol says about it."""
        return {**super().describe(), "noise": self.level, "noise_seed": self.seed}

    def _one(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model = self.model
        encoded = model.encode(normalize(pixels).to(model.device, model.dtype))
        generator = torch.Generator().manual_seed(zlib.crc32(pixels.cpu().numpy().tobytes(), self.seed))
        noise = torch.randn(encoded.latents.shape, generator=generator).to(encoded.latents)
        indices = model.quantize(encoded.latents + self.level * noise)[1]
        return model.decode_from_indices(indices).sample, indices, encoded.indices


def with_noise(reconstructor, levels: Sequence[float]) -> list[NoisyReconstructor]:
    """A tokenizer with noise of each level; nothing for what has no tokens.

    Raises:
        ValueError: for a level that is not above 0.
    """
    for level in levels:
        _check_level(level)
    if not getattr(reconstructor, "codebook_sizes", None):
        return []
    return [NoisyReconstructor(reconstructor.model, level, reconstructor.name) for level in dict.fromkeys(levels)]


def _check_level(level: float) -> None:
    if not (math.isfinite(level) and level > 0):
        raise ValueError(f"noise ({level}) must be a finite number above 0")


class ChangedTokens(Metric):
    """Part of the tokens that are others than those of the images, from 0 to 1."""

    full_state_update = False
    higher_is_better = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        for state in ("changed", "count"):
            self.add_state(state, torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, indices: torch.Tensor, clean_indices: torch.Tensor) -> None:
        """Add tokens of the same shape."""
        self.changed += (indices != clean_indices).sum().to(self.changed.device)
        self.count += indices.numel()

    def compute(self) -> torch.Tensor:
        """float64; NaN without tokens."""
        return self.changed.double() / self.count
