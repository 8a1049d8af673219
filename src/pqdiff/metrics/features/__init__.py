"""Networks whose features metrics of distributions compare. A new one is a file here and a line in `EXTRACTORS`."""

from pathlib import Path

import torch

from pqdiff.metrics.features.base import FeatureExtractor, FeatureOutput
from pqdiff.metrics.features.clip import CLIPFeatures
from pqdiff.metrics.features.efficientnet_lite0 import EfficientNetLite0
from pqdiff.metrics.features.inception import FIDInception
from pqdiff.suggestions import did_you_mean

__all__ = ["EXTRACTORS", "FeatureExtractor", "FeatureOutput", "build_features"]

EXTRACTORS: dict[str, type[FeatureExtractor]] = {
    "clip": CLIPFeatures,
    "efficientnet_lite0": EfficientNetLite0,
    "inception": FIDInception,
}


def build_features(name: str, weights: str | Path | None = None, sha256: str | None = None) -> FeatureExtractor:
    """An extractor with its weights, on the CPU. Building it leaves torch's random numbers as they were.

    Args:
        name: one of `EXTRACTORS`.
        weights: file of weights. Default: where the extractor's `weights` says.
        sha256: beginning of the file's SHA-256, if it is another than the published one.

    Raises:
        ValueError: for an unknown name, or a file that does not hold the published weights.
        FileNotFoundError: if `weights` is not a file; or `MissingWeights`, if there are none.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"features ({name!r}) are unknown: {did_you_mean(name, EXTRACTORS)}")
    with torch.random.fork_rng(devices=[]):
        return EXTRACTORS[name](weights, sha256)
