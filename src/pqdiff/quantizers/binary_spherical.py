"""Binary spherical quantization (BSQ): vectors on the unit sphere, each replaced by the nearest corner of a cube in it.

Zhao et al. 2024: Image and Video Tokenization with Binary Spherical Quantization (arXiv 2406.07548), Eq. (5) to (11).
"""

import torch
import torch.nn.functional as F

from pqdiff.quantizers.base import QuantizerOutput, register_quantizer
from pqdiff.quantizers.binary import BinaryQuantizer


@register_quantizer("binary_spherical")
class BinarySphericalQuantizer(BinaryQuantizer):
    """Divides every group of b = d / S channels by its length and replaces each by its sign / sqrt(b).

    The error of a group is bounded by sqrt(2 - 2 / sqrt(b)), so there is no commitment by default.

    Args:
        latent_channels: number of latent channels d, each one bit.
        num_subspaces: number of tokens S, each for a contiguous group of b channels on a sphere of its own.
        entropy_weight: weight of the entropy loss, see `BinaryQuantizer`.
        diversity_weight: weight of its second term, gamma.
        commitment_weight: weight of mean((u - sg[codes])^2) over the vectors u on the sphere.
        temperature: of the probabilities in the entropy loss.
        entropy_bits: channels whose codes are counted jointly; 1 in the paper, all channels independent.

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int = 1,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.0,
        temperature: float = 0.01,
        entropy_bits: int = 1,
    ):
        magnitude = (latent_channels / max(num_subspaces, 1)) ** -0.5
        weights = (entropy_weight, diversity_weight, commitment_weight)
        super().__init__(latent_channels, num_subspaces, magnitude, *weights, temperature, entropy_bits)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)
        codes = self.decode(indices)
        with torch.autocast(z.device.type, enabled=False):
            groups = z.float().unflatten(1, (self.num_subspaces, self.bits))
            on_sphere = F.normalize(groups, dim=2).flatten(1, 2)
            loss, logs = self._entropy_loss(on_sphere)
            loss = loss + self.commitment_weight * (on_sphere - codes).square().mean()
            codes = codes + (on_sphere - on_sphere.detach())  # the gradient reaches z through the division
        return QuantizerOutput(codes.to(z.dtype), indices, loss, logs)
