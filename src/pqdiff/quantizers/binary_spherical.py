"""Binary spherical quantization (BSQ): vectors on the unit sphere, each replaced by the nearest corner of a cube in it.

Zhao et al. 2024: Image and Video Tokenization with Binary Spherical Quantization (arXiv 2406.07548), Eq. (5) to (11).
"""

import torch
import torch.nn.functional as F

from pqdiff.quantizers.base import QuantizerOutput, register_quantizer
from pqdiff.quantizers.binary import BinaryQuantizer


@register_quantizer("binary_spherical")
class BinarySphericalQuantizer(BinaryQuantizer):
    """Divides every group of b = d / S channels by its length and replaces each channel by its sign / sqrt(b).

    Arguments are those of `BinaryQuantizer`; losses are those of the vectors on the sphere. The error of a group is bounded
    by sqrt(2 - 2 / sqrt(b)), so it needs no commitment.
    """

    @property
    def magnitude(self) -> float:
        return self.bits**-0.5

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)
        codes = self.decode(indices)
        with torch.autocast(z.device.type, enabled=False):
            groups = z.float().unflatten(1, (self.num_subspaces, self.bits))
            on_sphere = F.normalize(groups, dim=2).flatten(1, 2)
            loss, logs = self._losses(on_sphere, codes)
            codes = codes + (on_sphere - on_sphere.detach())  # the gradient reaches z through the division
        return QuantizerOutput(codes.to(z.dtype), indices, loss, logs)
