"""Stable Diffusion on product-quantized latents: prompts to pictures, pictures to pictures, inpainting."""

from .pipeline_pq_stable_diffusion import PQStableDiffusionImg2ImgPipeline, PQStableDiffusionPipeline
from .pipeline_pq_stable_diffusion_inpaint import PQStableDiffusionInpaintPipeline
from .variants import VARIANTS, Stage, Variant, load_variant

__all__ = [
    "VARIANTS",
    "PQStableDiffusionImg2ImgPipeline",
    "PQStableDiffusionInpaintPipeline",
    "PQStableDiffusionPipeline",
    "Stage",
    "Variant",
    "load_variant",
]
