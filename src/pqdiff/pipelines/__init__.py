"""Stable Diffusion on product-quantized latents: prompts to images, images to images, inpainting."""

import diffusers
from diffusers.pipelines import auto_pipeline

from pqdiff.adaptation.stages import Stage
from pqdiff.adaptation.variants import VARIANTS, Variant, load_variant
from pqdiff.pipelines.pipeline_pq_stable_diffusion import PQStableDiffusionImg2ImgPipeline, PQStableDiffusionPipeline
from pqdiff.pipelines.pipeline_pq_stable_diffusion_inpaint import PQStableDiffusionInpaintPipeline

__all__ = [
    "VARIANTS",
    "PQStableDiffusionImg2ImgPipeline",
    "PQStableDiffusionInpaintPipeline",
    "PQStableDiffusionPipeline",
    "Stage",
    "Variant",
    "load_variant",
]

# The generic loaders find pipelines by name: DiffusionPipeline among what diffusers exports, the AutoPipelines in these
# tables, so that `AutoPipelineForImage2Image.from_pipe` keeps checks and snapping.
for _task, _pipeline in {
    "TEXT2IMAGE": PQStableDiffusionPipeline,
    "IMAGE2IMAGE": PQStableDiffusionImg2ImgPipeline,
    "INPAINT": PQStableDiffusionInpaintPipeline,
}.items():
    setattr(diffusers, _pipeline.__name__, _pipeline)
    getattr(auto_pipeline, f"AUTO_{_task}_PIPELINES_MAPPING")["pq-stable-diffusion"] = _pipeline
