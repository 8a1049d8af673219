"""The protocol of record for reconstruction: what is measured, on what, and everything that is needed to repeat it."""

import platform
from collections.abc import Callable, Iterable

import diffusers
import torch
from PIL import Image
from torchmetrics import MetricCollection

from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import normalize, to_pixels, to_tensor
from pqdiff.metrics import (
    MDSI,
    MSSSIM,
    SSIMULACRA2,
    VIF,
    DatasetPSNR,
    HaarPSI,
    ImageDistance,
    ImagePSNR,
    ImageSSIM,
    TokenCounts,
)
from pqdiff.metrics.reconstruction import as_number
from pqdiff.models.checks import check_finite
from pqdiff.models.fingerprint import fingerprint

# What people see, without a network. An image that is too small for one of them leaves that number out.
_PERCEPTION = {"ms_ssim": MSSSIM, "haarpsi": HaarPSI, "mdsi": MDSI, "ssimulacra2": SSIMULACRA2, "vif": VIF}


class ReconstructionMetrics(MetricCollection):
    """All metrics of a tokenizer's reconstructions. Batches accumulate, and processes add up.

    Args:
        codebook_sizes: those of the quantizer.
        perceptual: perceptual distance, such as `PerceptualLoss`: distances `(B,)` of two batches of images in [-1, 1].
            None leaves `lpips_vgg` out.
        perception: also `ms_ssim`, `haarpsi`, `mdsi`, `ssimulacra2` and `vif`, which take longer than the rest.
    """

    def __init__(self, codebook_sizes: tuple[int, ...], perceptual: Callable | None = None, perception: bool = False):
        metrics = {"psnr_dataset": DatasetPSNR(), "psnr_image_mean": ImagePSNR(), "ssim": ImageSSIM()}
        if perceptual is not None:
            metrics["lpips_vgg"] = ImageDistance(perceptual)
        if perception:
            metrics |= {name: metric(strict=False) for name, metric in _PERCEPTION.items()}
        # No compute groups: metrics with states of the same names would be taken for equal ones.
        super().__init__({**metrics, "tokens": TokenCounts(codebook_sizes)}, compute_groups=False)

    def update(self, reference: torch.Tensor, result: torch.Tensor, indices: torch.Tensor) -> None:
        """Add a batch.

        Args:
            reference: images, uint8 `(B, 3, H, W)` with sides of at least 11.
            result: their reconstructions, uint8 `(B, 3, H, W)`.
            indices: tokens of the images, integers `(B, G, h, w)`.

        Raises:
            ValueError: if the shapes or dtypes do not fit together.
        """
        num_pixels = len(reference) * reference.shape[2] * reference.shape[3]
        super().update(preds=result, target=reference, indices=indices, num_pixels=num_pixels)

    def compute(self) -> dict[str, float | None]:
        """Numbers over all batches and processes by name; None stands for infinity and NaN.

        `psnr_dataset` (one MSE over all pixels, dB), `psnr_image_mean` (dB), `ssim`, `lpips_vgg` if there is a network for
        it, those of perception if they were wanted (None if an image was too small), `bits_per_pixel`,
        `entropy_bits_per_pixel`, and `codebook_` with the names in `CodebookUsage`.
        """
        return {name: as_number(value) for name, value in super().compute().items()}


@torch.no_grad()
def evaluate_reconstruction(
    model,
    images: Iterable[Image.Image],
    resolution: int = 256,
    on_image: Callable[[int], None] = lambda count: None,
) -> dict:
    """Metrics of an `AutoencoderPQ` on RGB images, one at a time.

    The shorter side of an image is resized to `resolution` by Lanczos and the center is cropped. The crop is encoded,
    decoded and rounded to 8 bits. All metrics are computed on the 8-bit images; `docs/metrics.md` says what they mean.

    Args:
        model: autoencoder, which is used on its device and in its dtype.
        images: RGB images.
        resolution: side of the crop in pixels, divisible by the downsampling factor, at least 11.
        on_image: called after every image with the number of images so far.

    Returns:
        dict that JSON can hold: `num_images`, `metrics` and `protocol`.

    Raises:
        ValueError: if there are no images, or the model gives values that are not finite.
    """
    metrics = ReconstructionMetrics(model.quantizer.codebook_sizes, perception=True)
    count = 0
    for count, image in enumerate(images, start=1):
        pixels = to_tensor(resize_and_crop(image, resolution))[None]
        indices = model.encode_to_indices(normalize(pixels).to(model.device, model.dtype))
        result = to_pixels(check_finite(model.decode_from_indices(indices).sample))
        metrics.update(pixels, result.cpu(), indices.cpu())
        on_image(count)
    if not count:
        raise ValueError("images is empty: give at least one image to evaluate on")
    return {
        "num_images": count,
        "metrics": metrics.compute(),
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
