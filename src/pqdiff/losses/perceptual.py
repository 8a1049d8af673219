"""LPIPS: how different two images look to people (Zhang et al., arXiv 1801.03924), without torchvision.

LPIPS takes squared differences of unit-normalized features, weights them per channel, averages them over positions and
sums them over five stages. The channel weights come from torchmetrics. Training uses VGG16; tables in papers usually show
LPIPS with AlexNet.

On EfficientNet-Lite0, whose weights pip has, there are no learned channel weights: each is 1. That distance is not LPIPS,
was never compared with what people see, and has a name of its own.
"""

from pathlib import Path

import torch
import torchmetrics
from torch import nn

from pqdiff.losses.backbones import BACKBONES
from pqdiff.network_weights import WeightsFile
from pqdiff.suggestions import did_you_mean

_HEADS = Path(torchmetrics.__file__).parent / "functional" / "image" / "lpips_models"
_EPS = 1e-8  # inside the root, because a norm has an infinite gradient where all features are zero
_MIN_SIZE = 32


class PerceptualLoss(nn.Module):
    """LPIPS or feature distance of images, differentiable in both. Equal images have distance 0.

    The network is frozen, always in eval mode, and computes in fp32, also under autocast.

    Args:
        weights: file with the network's weights. Default: the file that the environment variable PQDIFF_VGG16 or
            PQDIFF_ALEXNET or PQDIFF_EFFICIENTNET_LITE0 names, else for VGG16 the file on the Hub, and for
            EfficientNet-Lite0 that of its pip package.
        network: "vgg" or "alex" for LPIPS, "efficientnet-lite0" for the distance without learned channel weights.
        sha256: beginning of the file's SHA-256, if it is another than the published ones.
        source: where the weights are looked for. Default: that of the network's class.

    Attributes:
        name: "lpips_vgg", "lpips_alex" or "feature_loss_efficientnet_lite0", for logs and tables.
        digest: SHA-256 of the file of weights.

    Raises:
        FileNotFoundError: if there are no weights or a package is missing; the message says what to get.
        ValueError: if the file has another SHA-256 or does not hold the weights, or there is no such network.
    """

    def __init__(
        self,
        weights: str | Path | None = None,
        *,
        network: str = "vgg",
        sha256: str | None = None,
        source: WeightsFile | None = None,
    ):
        super().__init__()
        if network not in BACKBONES:
            raise ValueError(f"network ({network!r}) is unknown: {did_you_mean(network, BACKBONES)}")
        self.trunk = BACKBONES[network]()
        self.name = self.trunk.name
        self.digest = (source or self.trunk.weights).load_into(self.trunk, weights, sha256)
        for name in ("shift", "scale"):
            self.register_buffer(name, torch.tensor(getattr(self.trunk, name)).view(1, 3, 1, 1))
        lpips, channels = self.name.startswith("lpips"), self.trunk.channels
        for stage, head in enumerate(_read_heads(network, channels) if lpips else map(torch.ones, channels)):
            self.register_buffer(f"head_{stage}", head)
        self.eval()

    def train(self, mode: bool = True) -> "PerceptualLoss":
        """Does nothing: the network stays in eval mode, also as a part of a module that trains."""
        return super().train(False)

    def forward(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Distances `(B,)` in fp32 between images `(B, 3, H, W)` in [-1, 1], sides at least 32 px.

        Raises:
            ValueError: if the shapes differ, or are not of this form.
        """
        if images.shape != others.shape or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                f"images and others must both be (B, 3, H, W), got {tuple(images.shape)} and {tuple(others.shape)}"
            )
        if min(images.shape[2:]) < _MIN_SIZE:
            raise ValueError(
                f"images ({images.shape[2]} x {images.shape[3]}) must have sides of at least {_MIN_SIZE} px for "
                f"{self.trunk.title}: use larger crops or a perceptual weight of 0"
            )
        with torch.autocast(images.device.type, enabled=False):
            first, second = (self.trunk((x.float() - self.shift) / self.scale) for x in (images, others))
            distance = images.new_zeros(len(images), dtype=torch.float32)
            for stage, (a, b) in enumerate(zip(first, second, strict=True)):
                difference = (_unit(a) - _unit(b)).square().mean((2, 3))  # (B, C)
                distance = distance + difference @ getattr(self, f"head_{stage}")
        return distance


def _unit(features: torch.Tensor) -> torch.Tensor:
    """Features `(B, C, h, w)` divided by their norm over the channels."""
    return features * (features.square().sum(1, keepdim=True) + _EPS).rsqrt()


def _read_heads(network: str, channels: tuple[int, ...]) -> list[torch.Tensor]:
    """Channel weights `(C,)` of the five stages, from the installed torchmetrics."""
    try:
        tensors = torch.load(_HEADS / f"{network}.pth", map_location="cpu", weights_only=True)
        heads = [tensors[f"lin{stage}.model.1.weight"].flatten() for stage in range(len(channels))]
    except (OSError, KeyError) as error:
        raise ValueError(
            f"torchmetrics ({torchmetrics.__version__}) does not hold the channel weights of LPIPS where pqdiff looks "
            "for them: install version 1.9"
        ) from error
    if tuple(map(len, heads)) != channels:
        found = tuple(map(len, heads))
        raise ValueError(
            f"the channel weights of LPIPS in torchmetrics are for {found} channels, must be for {channels}"
        )
    return heads
