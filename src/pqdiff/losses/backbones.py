"""The convolutions of VGG16 (arXiv 1409.1556) and AlexNet (Krizhevsky 2014, arXiv 1404.5997), on which LPIPS is built.

The networks are written here so that pqdiff does not need torchvision. Their layers have torchvision's numbers,
`features.0` and so on, so that published weights fit.
"""

import torch
from torch import nn

from pqdiff.network_weights import WeightsFile

_INSTEAD = "train with a perceptual weight of 0, or evaluate without LPIPS"


class Backbone(nn.Module):
    """Maps images `(B, 3, H, W)`, standardized as the weights expect, to the features of five stages.

    Attributes:
        channels: channels of the five stages.
    """

    channels: tuple[int, ...]

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


BACKBONES = {"alex": AlexNetFeatures, "vgg": VGG16Features}  # by the names that LPIPS has for them
