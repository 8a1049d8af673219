"""MS-SSIM (Wang, Simoncelli, Bovik 2003), which torchmetrics computes: here image by image."""

import torch
from torchmetrics.functional.image import multiscale_structural_similarity_index_measure

from pqdiff.metrics.image_mean import ImageMean, per_image

_LEAST_SIDE = 176  # a sixteenth of it holds the window of 11


def ms_ssim(preds: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """MS-SSIM of each image at five scales, 1 for equal images; negative contrasts count as 0.

    Args:
        preds: reconstructions `(B, C, H, W)`, uint8 or floating point in [0, 1], with sides of at least 176.
        target: their images.

    Returns:
        `(B,)` float32.

    Raises:
        ValueError: if the images do not fit together or are too small.
    """
    return per_image(_ms_ssim, preds, target, "MS-SSIM", _LEAST_SIDE, channels=None)


class MSSSIM(ImageMean):
    """Mean of the MS-SSIM of each image, in [0, 1]. Higher is better. See `ms_ssim`."""

    least_side = _LEAST_SIDE
    values = staticmethod(ms_ssim)


def _ms_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return multiscale_structural_similarity_index_measure(x[None], y[None], data_range=1.0)
