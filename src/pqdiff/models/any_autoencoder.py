"""Which class an autoencoder has: ours, or one of diffusers, whose latents a UNet may move to as well."""

from pathlib import Path

import diffusers
from diffusers import ModelMixin

from .autoencoder_pq import AutoencoderPQ


def find_autoencoder(place: str) -> tuple[type[ModelMixin], str]:
    """Class of the autoencoder in a folder or at a Hub id, and where `from_pretrained` finds it.

    A pipeline's folder stands for its autoencoder. What says of no class of diffusers that it is one is taken for ours.

    Raises:
        OSError: if there is no configuration.
    """
    if (Path(place) / "model_index.json").is_file():
        place = str(Path(place) / "vae")
    config = AutoencoderPQ.load_config(place)
    name = str(config.get("_class_name")) if isinstance(config, dict) else ""
    known = name.startswith("Autoencoder") and hasattr(diffusers, name)
    return (getattr(diffusers, name) if known else AutoencoderPQ), place
