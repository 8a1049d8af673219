"""Stable Diffusion on product-quantized latents, for `DiffusionPipeline.from_pretrained(..., custom_pipeline=...)`.

The pipeline lives in the package pqdiff, where it is tested and kept up to date; this file only finds it there.
"""

try:
    from pqdiff import PQStableDiffusionPipeline
except ImportError as error:
    raise ImportError(f"this pipeline needs the package pqdiff ({error}): pip install pqdiff") from error

__all__ = ["PQStableDiffusionPipeline"]
