"""The protocol of record for reconstruction: what is measured, on what, and everything needed to repeat it."""

import platform
from collections.abc import Callable, Iterable

import diffusers
import torch
from PIL import Image

from ..data.images import normalize, resize_and_crop, to_pixels, to_tensor
from ..models.fingerprint import fingerprint
from . import BitsPerPixel, CodebookUsage, DatasetPSNR, EntropyBitsPerPixel, ImagePSNR, ImageSSIM
from .reconstruction import as_number


@torch.no_grad()
def evaluate_reconstruction(
    model,
    images: Iterable[Image.Image],
    resolution: int = 256,
    on_image: Callable[[int], None] = lambda count: None,
) -> dict:
    """Metrics of an `AutoencoderPQ` on RGB images, one at a time.

    Shorter side to `resolution` by Lanczos, center crop, encode, decode, round to 8 bits; all metrics on those 8 bits.

    Args:
        model: autoencoder; used as it is (device, dtype).
        images: RGB images.
        resolution: side of the crop in pixels, divisible by F.
        on_image: called with the number of images done.

    Returns:
        JSON-ready dict: `num_images`, `metrics` and `protocol`.

    Raises:
        ValueError: if there are no images.
    """
    sizes = model.quantizer.codebook_sizes
    psnr, image_psnr, ssim = DatasetPSNR(), ImagePSNR(), ImageSSIM()
    rate, entropy, usage = BitsPerPixel(sizes), EntropyBitsPerPixel(sizes), CodebookUsage(sizes)
    count = 0
    for count, image in enumerate(images, start=1):
        pixels = to_tensor(resize_and_crop(image, resolution))[None]
        indices = model.encode_to_indices(normalize(pixels).to(model.device, model.dtype))
        result = to_pixels(model.decode_from_indices(indices).sample).cpu()
        for metric in (psnr, image_psnr, ssim):
            metric.update(result, pixels)
        for metric in (rate, entropy, usage):
            metric.update(indices.cpu(), resolution**2)
        on_image(count)
    if not count:
        raise ValueError("there are no images to evaluate on")
    return {
        "num_images": count,
        "metrics": {
            "psnr_dataset": as_number(psnr.compute()),
            "psnr_image_mean": as_number(image_psnr.compute()),
            "ssim": as_number(ssim.compute()),
            "bits_per_pixel": as_number(rate.compute()),
            "entropy_bits_per_pixel": as_number(entropy.compute()),
            **{f"codebook_{name}": as_number(value) for name, value in usage.compute().items()},
        },
        "protocol": {
            "resolution": resolution,
            "resize": "shorter side, Lanczos, center crop",
            "output": "8-bit",
            "dtype": str(model.dtype).removeprefix("torch."),
            "fingerprint": fingerprint(model),
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        },
    }
