"""Measure what an autoencoder's latents are like on images, and give the model what it needs to know of that."""

from collections.abc import Iterable

import torch

from pqdiff.data.images.reading import normalize
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.models.statistics import LatentStatistics

_COUNTED = 2**24  # values of all tokens: with more there is nothing to learn from how often each occurs


@torch.no_grad()
def measure_latents(model: AutoencoderPQ, images: Iterable[torch.Tensor]) -> None:
    """Set the model's statistics, so that what leaves `encode` has mean 0 and, on average, variance 1, and the frequencies
    of its codewords, which are the prior of soft snapping.

    Args:
        model: changed in place; the exponent of its standardization stays.
        images: uint8 `(3, H, W)`, sides divisible by F; read once.

    Raises:
        ValueError: if there are no images.
    """
    sizes = model.quantizer.codebook_sizes
    counts = [torch.zeros(size, dtype=torch.int64) for size in sizes] if sum(sizes) <= _COUNTED else []
    count, total, squares = 0, 0.0, 0.0
    for pixels in images:
        indices = model.encode_to_indices(normalize(pixels)[None].to(model.device, model.dtype))
        latents = model.quantizer.to_latents(indices).double().transpose(0, 1).flatten(1)  # (d, h w)
        count, total, squares = count + latents.shape[1], total + latents.sum(1), squares + latents.square().sum(1)
        for each, tokens in zip(counts, indices.transpose(0, 1).flatten(1).cpu(), strict=False):
            each += torch.bincount(tokens, minlength=len(each))
    if not count:
        raise ValueError("there are no images to measure latents on")
    mean = total / count
    std = (squares / count - mean.square()).clamp_min(1e-12).sqrt()
    exponent = (model.config.statistics_config or {}).get("exponent", 0.0)
    config = {"mean": mean.tolist(), "std": std.tolist(), "exponent": exponent}
    model.register_to_config(statistics_config=config)
    model.statistics = LatentStatistics(model.config.latent_channels, **config).to(model.device)
    if counts:
        model.quantizer.set_frequencies([each.to(model.device) for each in counts])
