"""The contract of feature extractors: networks that see images as metrics of distributions want them seen."""

import contextlib
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import nn

from pqdiff.network_weights import WeightsFile
from pqdiff.quantizers.search.exact_matmul import exact_matmul


class FeatureOutput(NamedTuple):
    """What a network says about images: `features` fp32 `(B, dim)`, and `logits` fp32 `(B, num_classes)` or None."""

    features: torch.Tensor
    logits: torch.Tensor | None


class FeatureExtractor(nn.Module, ABC):
    """A frozen network with its own preparation of images.

    Every image is prepared and seen on its own, in fp32 without autocast or TF32, so that neither the size of a batch nor a
    setting of the user changes a number. A subclass sets the class attributes, builds the network, and writes `prepare` and
    `see`.

    Attributes:
        name: name in the registry, which ends the names of metrics.
        dim: D, the number of features.
        num_classes: number of classes of the logits, or None.
        weights: where the network's weights come from.
        preparation: how images become inputs, in words, for records of protocols.
        digest: SHA-256 of the file of weights.
        local_dim: number of features of a position, or 0 if the network gives none.
        local_side: side of the square images that `local` is made for.
    """

    name: str
    dim: int
    num_classes: int | None
    weights: WeightsFile
    preparation: str
    digest: str
    local_dim: int = 0
    local_side: int = 0

    @abstractmethod
    def prepare(self, image: torch.Tensor) -> torch.Tensor:
        """Inputs `(1, 3, h, w)` of the network for one fp32 image `(1, 3, H, W)` from 0 to 255."""

    @abstractmethod
    def see(self, inputs: torch.Tensor) -> FeatureOutput:
        """What the network makes of prepared images."""

    def see_local(self, image: torch.Tensor) -> torch.Tensor:
        """Features `(1, local_dim, h, w)` of positions of one fp32 image `(1, 3, H, W)` from 0 to 255, if there are any."""
        raise ValueError(f"{self.name} gives no features of positions")

    @torch.no_grad()
    def local(self, images: torch.Tensor) -> torch.Tensor:
        """Features `(B, local_dim, h, w)` of positions of images, uint8 `(B, 3, H, W)`; for codebooks of features.

        Raises:
            ValueError: for images of another shape or type, or if the network gives no such features.
        """
        return torch.cat(self._one_by_one(images, self.see_local))

    @torch.no_grad()
    def forward(self, images: torch.Tensor) -> FeatureOutput:
        """Features and logits of images, uint8 `(B, 3, H, W)`, on the device of the network.

        Raises:
            ValueError: for images of another shape or type.
        """
        outputs = self._one_by_one(images, lambda image: self.see(self.prepare(image)))
        features, logits = zip(*outputs, strict=True)
        return FeatureOutput(torch.cat(features), None if logits[0] is None else torch.cat(logits))

    def _one_by_one(self, images: torch.Tensor, see) -> list:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3 or not images.numel():
            raise ValueError(f"images must be uint8 (B, 3, H, W), got {images.dtype} {tuple(images.shape)}")
        device = next(self.parameters()).device
        with full_precision(device):
            return [see(image.to(device).float()) for image in images.split(1)]

    def train(self, mode: bool = True) -> "FeatureExtractor":
        """Does nothing: the network stays in eval mode."""
        return super().train(False)


@contextlib.contextmanager
def full_precision(device: torch.device):
    """No autocast, no TF32, and algorithms of cuDNN that give the same numbers every time."""
    cudnn = torch.backends.cudnn
    # The newer of torch's two settings where there is one: beside it the older refuses to be read.
    tf32 = (cudnn.conv, "fp32_precision", "ieee") if hasattr(cudnn, "conv") else (cudnn, "allow_tf32", False)
    settings = (tf32, (cudnn, "benchmark", False), (cudnn, "deterministic", True))
    before = [getattr(owner, name) for owner, name, _ in settings]
    with torch.autocast(device.type, enabled=False), exact_matmul():
        try:
            for owner, name, value in settings:
                setattr(owner, name, value)
            yield
        finally:
            for (owner, name, _), value in zip(settings, before, strict=True):
                setattr(owner, name, value)
