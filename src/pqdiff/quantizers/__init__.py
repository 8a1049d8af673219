"""z to tokens to codes: one quantizer per file, one contract (`base.py`). Imports torch alone."""

from pqdiff.quantizers.base import (
    FP32_TENSORS,
    QUANTIZERS,
    Fp32Module,
    Quantizer,
    QuantizerOutput,
    build_quantizer,
    register_quantizer,
)
from pqdiff.quantizers.binary_spherical import BinarySphericalQuantizer
from pqdiff.quantizers.classified_product import ClassifiedProductQuantizer
from pqdiff.quantizers.finite_scalar import FiniteScalarQuantizer
from pqdiff.quantizers.frozen_codebook import FrozenCodebookQuantizer
from pqdiff.quantizers.gaussian import GaussianQuantizer
from pqdiff.quantizers.lookup_free import LookupFreeQuantizer
from pqdiff.quantizers.multichannel import MultichannelQuantizer
from pqdiff.quantizers.product import ProductQuantizer
from pqdiff.quantizers.residual import ResidualQuantizer
from pqdiff.quantizers.token_bridge import TokenBridgeQuantizer
from pqdiff.quantizers.vector import VectorQuantizer

__all__ = [
    "FP32_TENSORS",
    "QUANTIZERS",
    "BinarySphericalQuantizer",
    "ClassifiedProductQuantizer",
    "FiniteScalarQuantizer",
    "Fp32Module",
    "FrozenCodebookQuantizer",
    "GaussianQuantizer",
    "LookupFreeQuantizer",
    "MultichannelQuantizer",
    "ProductQuantizer",
    "Quantizer",
    "QuantizerOutput",
    "ResidualQuantizer",
    "TokenBridgeQuantizer",
    "VectorQuantizer",
    "build_quantizer",
    "register_quantizer",
]
