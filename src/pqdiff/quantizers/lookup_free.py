"""Lookup-free quantization (LFQ): the code of a vector is the signs of its channels.

Yu et al. 2023: Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (MAGVIT-v2, arXiv 2310.05737),
Eq. (3) to (5). With several tokens it is the grouped LFQ of WeTok (arXiv 2508.05599).
"""

import torch

from pqdiff.quantizers.base import QuantizerOutput, register_quantizer
from pqdiff.quantizers.binary import BinaryQuantizer


@register_quantizer("lookup_free")
class LookupFreeQuantizer(BinaryQuantizer):
    """Replaces every channel by its sign, +1 or -1; 0 counts as negative. Arguments are those of `BinaryQuantizer`; without
    a `commitment_weight`, such as 0.25, nothing but the entropy keeps z near its codes."""

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)
        codes = self.decode(indices)
        with torch.autocast(z.device.type, enabled=False):
            loss, logs = self._losses(z.float(), codes)
        return QuantizerOutput(codes.to(z.dtype) + (z - z.detach()), indices, loss, logs)
