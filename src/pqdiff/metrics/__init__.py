"""Metrics as classes of torchmetrics: they accumulate over batches and add up over processes."""

from pqdiff.metrics.codebook import BitsPerPixel, CodebookUsage, EntropyBitsPerPixel, TokenCounts
from pqdiff.metrics.haarpsi import HaarPSI
from pqdiff.metrics.image_mean import ImageMean
from pqdiff.metrics.mdsi import MDSI
from pqdiff.metrics.ms_ssim import MSSSIM
from pqdiff.metrics.reconstruction import DatasetPSNR, ImageDistance, ImagePSNR, ImageSSIM
from pqdiff.metrics.ssimulacra2 import SSIMULACRA2
from pqdiff.metrics.vif import VIF

__all__ = [
    "MDSI",
    "MSSSIM",
    "SSIMULACRA2",
    "VIF",
    "BitsPerPixel",
    "CodebookUsage",
    "DatasetPSNR",
    "EntropyBitsPerPixel",
    "HaarPSI",
    "ImageDistance",
    "ImageMean",
    "ImagePSNR",
    "ImageSSIM",
    "TokenCounts",
]
