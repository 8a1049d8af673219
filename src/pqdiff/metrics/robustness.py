"""How reconstructions suffer when latents are not quite right, as those of a generator never are.

Qiu et al. (arXiv 2503.08354) replace tokens by their neighbors in the codebook and call FID of the result pFID. Here
Gaussian noise on the standardized latents moves them to other codewords, which every quantizer can do. With FID's Inception
among the metrics, `rfid` at a noise level is our kind of pFID; it does not compare with theirs.
"""

import zlib
from collections.abc import Callable, Iterable

import torch

from pqdiff.data.images.reading import normalize, to_pixels
from pqdiff.models.checks import check_finite


@torch.no_grad()
def measure_robustness(
    model,
    images: Iterable[torch.Tensor],
    noise_levels: Iterable[float],
    make_metrics: Callable,
    seed: int = 0,
) -> dict[float, dict]:
    """Metrics of images that are decoded from noisy latents.

    Latents are standardized: 0.1 is a tenth of their standard deviation. The noisy latents are snapped to the nearest
    codewords. An image has the same noise at all levels, in any batch and in any order.

    Args:
        model: autoencoder with the interface of `AutoencoderPQ`.
        images: batches, uint8 `(B, 3, H, W)` with sides divisible by the downsampling factor.
        noise_levels: standard deviations of the noise, from 0. Level 0 is the plain reconstruction.
        make_metrics: gives new metrics for a level, with `update(images, reconstructions)` on uint8 batches and
            `compute()`, such as `PerceptionMetrics`.
        seed: of the noise.

    Returns:
        By noise level: what `compute` gives, as `metrics`, and `changed_tokens`, the part of the tokens that the noise
        changed.

    Raises:
        ValueError: for a negative level, no images, or a model that gives values that are not finite.
    """
    levels = {float(level): make_metrics() for level in noise_levels}
    if not all(level >= 0 for level in levels):
        raise ValueError(f"noise_levels ({', '.join(map(str, levels))}) must be from 0")
    changed, count = dict.fromkeys(levels, 0), 0
    for image in (image for batch in images for image in batch.split(1)):
        encoded = model.encode(normalize(image).to(model.device, model.dtype))
        generator = torch.Generator().manual_seed(zlib.crc32(image.cpu().numpy().tobytes(), seed))
        noise = torch.randn(encoded.latents.shape, generator=generator).to(encoded.latents)
        for level, metrics in levels.items():
            indices = model.quantize(encoded.latents + level * noise)[1] if level else encoded.indices
            changed[level] += (indices != encoded.indices).sum().item()
            metrics.update(image, to_pixels(check_finite(model.decode_from_indices(indices).sample)).to(image.device))
        count += encoded.indices.numel()
    if not count:
        raise ValueError("images is empty: give at least one image")
    return {
        level: {"metrics": metrics.compute(), "changed_tokens": changed[level] / count}
        for level, metrics in levels.items()
    }
