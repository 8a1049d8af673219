"""What is measured of reconstructions: all metrics that need no weights, and the rate."""

from collections.abc import Callable, Mapping

import torch
from torchmetrics import MetricCollection

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
from pqdiff.metrics.codecs import FileBitsPerPixel
from pqdiff.metrics.reconstruction import as_number

# What people see, without a network. An image that is too small for one of them leaves that number out.
_PERCEPTION = {"ms_ssim": MSSSIM, "haarpsi": HaarPSI, "mdsi": MDSI, "ssimulacra2": SSIMULACRA2, "vif": VIF}


class ReconstructionMetrics(MetricCollection):
    """All metrics of a tokenizer's reconstructions. Batches accumulate, and processes add up.

    Args:
        codebook_sizes: those of the quantizer, or None without tokens: the rate is then that of files, if there are any.
        distances: perceptual distances by the name of the number, such as a `PerceptualLoss` by its `name`: each gives
            distances `(B,)` of two batches of images in [-1, 1].
        perception: also `ms_ssim`, `haarpsi`, `mdsi`, `ssimulacra2` and `vif`, which take longer than the rest.
    """

    def __init__(
        self,
        codebook_sizes: tuple[int, ...] | None,
        distances: Mapping[str, Callable] | None = None,
        perception: bool = False,
    ):
        metrics = {"psnr_dataset": DatasetPSNR(), "psnr_image_mean": ImagePSNR(), "ssim": ImageSSIM()}
        metrics |= {name: ImageDistance(distance) for name, distance in (distances or {}).items()}
        if perception:
            metrics |= {name: metric(strict=False) for name, metric in _PERCEPTION.items()}
        if codebook_sizes is None:
            metrics["bits_per_pixel"] = FileBitsPerPixel()
        else:
            metrics["tokens"] = TokenCounts(codebook_sizes)
        # No compute groups: metrics with states of the same names would be taken for equal ones.
        super().__init__(metrics, compute_groups=False)

    def update(
        self,
        reference: torch.Tensor,
        result: torch.Tensor,
        indices: torch.Tensor | None = None,
        num_bytes: int | None = None,
    ) -> None:
        """Add a batch.

        Args:
            reference: images `(B, 3, H, W)` with sides of at least 11, uint8 or fp32 in [0, 1].
            result: their reconstructions of the same type.
            indices: tokens of the images, integers `(B, G, h, w)`, if there are tokens.
            num_bytes: size of the files of the images, if there are files.

        Raises:
            ValueError: if the shapes or dtypes do not fit together.
        """
        num_pixels = len(reference) * reference.shape[2] * reference.shape[3]
        if indices is None and num_bytes is None:  # neither tokens nor files: the rate is 0 / 0
            num_bytes = num_pixels = 0
        rate = {"num_bytes": num_bytes} if indices is None else {"indices": indices}
        super().update(preds=result, target=reference, num_pixels=num_pixels, **rate)

    def compute(self) -> dict[str, float | None]:
        """Numbers over all batches and processes by name; None stands for infinity and NaN.

        `psnr_dataset` (one MSE over all pixels, dB), `psnr_image_mean` (dB), `ssim`, the mean of each distance, those of
        perception if they were wanted (None if an image was too small), `bits_per_pixel`, `entropy_bits_per_pixel`, and
        `codebook_` with the names in `CodebookUsage`.
        """
        return {name: as_number(value) for name, value in super().compute().items()}
