"""Latents to codes: one quantizer per file, one contract (`base.py`). Imports torch alone."""

from .base import QUANTIZERS, Fp32Module, Quantizer, QuantizerOutput, build_quantizer, register_quantizer
from .product import ProductQuantizer

__all__ = [
    "QUANTIZERS",
    "Fp32Module",
    "ProductQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "build_quantizer",
    "register_quantizer",
]
