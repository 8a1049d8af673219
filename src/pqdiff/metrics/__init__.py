"""Metrics as classes of torchmetrics: they accumulate over batches and add up over processes."""

from pqdiff.metrics.codebook import BitsPerPixel, CodebookUsage, EntropyBitsPerPixel, TokenCounts
from pqdiff.metrics.reconstruction import DatasetPSNR, ImageDistance, ImagePSNR, ImageSSIM

__all__ = [
    "BitsPerPixel",
    "CodebookUsage",
    "DatasetPSNR",
    "EntropyBitsPerPixel",
    "ImageDistance",
    "ImagePSNR",
    "ImageSSIM",
    "TokenCounts",
]
