"""Modules that are saved and loaded."""

from .autoencoder_pq import AutoencoderPQ
from .presets import PRESETS

__all__ = ["PRESETS", "AutoencoderPQ"]
