"""pqdiff: product-quantized image latents for Stable Diffusion.

`import pqdiff` is fast: torch and diffusers are imported when a class is used for the first time.
"""

import importlib
from typing import TYPE_CHECKING

from pqdiff.checkpoints import BUNDLED, bundled
from pqdiff.models.presets import PRESETS
from pqdiff.registration import register_with_diffusers

if TYPE_CHECKING:
    from diffusers import ModelMixin

    from pqdiff.fitting.gaussian_vae import convert_gaussian_vae
    from pqdiff.models.autoencoder_pq import AutoencoderPQ
    from pqdiff.pipelines import (
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
    "convert_gaussian_vae",
]
# The module of each name that is imported when it is used. diffusers needs to find ModelMixin here (`registration.py`).
_MODULES = {
    "AutoencoderPQ": "pqdiff.models.autoencoder_pq",
    "ModelMixin": "diffusers",
    "PQStableDiffusionImg2ImgPipeline": "pqdiff.pipelines",
    "PQStableDiffusionInpaintPipeline": "pqdiff.pipelines",
    "PQStableDiffusionPipeline": "pqdiff.pipelines",
    "convert_gaussian_vae": "pqdiff.fitting.gaussian_vae",
}

register_with_diffusers()


def __getattr__(name: str):
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
        globals()[name] = value  # so that this function is called once for each name
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
