"""Modules that are saved and loaded. `AutoencoderPQ` is imported when it is used, because `presets` needs no torch."""

from typing import TYPE_CHECKING

from pqdiff.models.presets import PRESETS

if TYPE_CHECKING:
    from pqdiff.models.autoencoder_pq import AutoencoderPQ

__all__ = ["PRESETS", "AutoencoderPQ"]


def __getattr__(name: str):
    if name == "AutoencoderPQ":
        from pqdiff.models.autoencoder_pq import AutoencoderPQ

        return AutoencoderPQ
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
