"""pqdiff: product-quantized image latents for Stable Diffusion."""

from diffusers import ModelMixin
from diffusers.pipelines import pipeline_loading_utils

from .checkpoints import BUNDLED, bundled
from .models import PRESETS, AutoencoderPQ

__version__ = "0.1.0"
__all__ = ["BUNDLED", "PRESETS", "AutoencoderPQ", "ModelMixin", "bundled"]

# Makes diffusers save our components as ["pqdiff", "AutoencoderPQ"] and load them so, by folder and by Hub repo id. The
# one place that touches an undocumented table of diffusers. Needs ModelMixin as an attribute of this package.
pipeline_loading_utils.LOADABLE_CLASSES["pqdiff"] = {"ModelMixin": ["save_pretrained", "from_pretrained"]}
