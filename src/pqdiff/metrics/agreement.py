"""Whether a network sees the same in a reconstruction as in its image."""

import torch
import torch.nn.functional as F
from torchmetrics import Metric


class _ImageMean(Metric):
    """Mean of a number of every image."""

    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def compute(self) -> torch.Tensor:
        """The mean as float64 `()`, NaN if there are no images."""
        return self.total / self.count


class FeatureDistance(_ImageMean):
    """Mean squared distance of the features of an image and of its reconstruction, both divided by their norms.

    It is in [0, 4]: 2 - 2 cos of the angle between them. Lower is better.
    """

    higher_is_better = False

    def update(self, reference: torch.Tensor, result: torch.Tensor) -> None:
        """Add features `(B, D)` of images and of their reconstructions."""
        difference = F.normalize(reference.double()) - F.normalize(result.double())
        self.total += difference.square().sum()
        self.count += len(difference)


class ClassAgreement(_ImageMean):
    """Part of the images whose reconstruction gets the same class, whether that class is right or not. Higher is better."""

    higher_is_better = True

    def update(self, reference: torch.Tensor, result: torch.Tensor) -> None:
        """Add logits `(B, num_classes)` of images and of their reconstructions."""
        self.total += (reference.argmax(1) == result.argmax(1)).sum()
        self.count += len(reference)
