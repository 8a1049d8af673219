"""pqdiff: product-quantized image latents for Stable Diffusion."""

from typing import TYPE_CHECKING

from diffusers import ModelMixin
from diffusers.pipelines import pipeline_loading_utils

from .checkpoints import BUNDLED, bundled
from .models import PRESETS, AutoencoderPQ

if TYPE_CHECKING:
    from .pipelines import (
        PQStableDiffusionImg2ImgPipeline,
        PQStableDiffusionInpaintPipeline,
        PQStableDiffusionPipeline,
    )

__version__ = "0.1.0"
__all__ = [
    "BUNDLED",
    "PRESETS",
    "AutoencoderPQ",
    "ModelMixin",
    "PQStableDiffusionImg2ImgPipeline",
    "PQStableDiffusionInpaintPipeline",
    "PQStableDiffusionPipeline",
    "bundled",
]

# Makes diffusers save our components as ["pqdiff", "AutoencoderPQ"] and load them so, by folder and by Hub repo id. The
# one place that touches an undocumented table of diffusers. Needs ModelMixin as an attribute of this package.
pipeline_loading_utils.LOADABLE_CLASSES["pqdiff"] = {"ModelMixin": ["save_pretrained", "from_pretrained"]}


def __getattr__(name: str):
    # The pipelines come when they are asked for: with them transformers loads its image processors, which warn where
    # torchvision is missing.
    if name in __all__:
        from . import pipelines

        return getattr(pipelines, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
