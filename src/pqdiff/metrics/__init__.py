"""Metrics as torchmetrics classes: they accumulate over batches and reduce over processes."""

from .codebook import BitsPerPixel, CodebookUsage, EntropyBitsPerPixel
from .reconstruction import DatasetPSNR, ImagePSNR, ImageSSIM

__all__ = ["BitsPerPixel", "CodebookUsage", "DatasetPSNR", "EntropyBitsPerPixel", "ImagePSNR", "ImageSSIM"]
