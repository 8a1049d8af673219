"""Lookup-free quantization (LFQ): the code of a vector is the signs of its channels.

Yu et al. 2023: Language Model Beats Diffusion: Tokenizer is Key to Visual Generation (MAGVIT-v2, arXiv 2310.05737),
Eq. (3) to (5). With several tokens it is the grouped LFQ of WeTok (arXiv 2508.05599).
"""

import torch

from pqdiff.quantizers.base import QuantizerOutput, register_quantizer
from pqdiff.quantizers.binary import BinaryQuantizer


@register_quantizer("lookup_free")
class LookupFreeQuantizer(BinaryQuantizer):
    """Replaces every channel by its sign, +1 or -1; 0 counts as negative.

    Args:
        latent_channels: number of latent channels d, each one bit.
        num_subspaces: number of tokens S, each for a contiguous group of d / S channels.
        entropy_weight: weight of the entropy loss, see `BinaryQuantizer`.
        diversity_weight: weight of its second term, gamma.
        commitment_weight: weight of mean((z - sg[codes])^2).
        temperature: of the probabilities in the entropy loss.
        entropy_bits: channels whose codes are counted jointly; must divide d / S.

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    def __init__(
        self,
        latent_channels: int,
        num_subspaces: int = 1,
        entropy_weight: float = 0.1,
        diversity_weight: float = 1.0,
        commitment_weight: float = 0.25,
        temperature: float = 0.01,
        entropy_bits: int = 1,
    ):
        weights = (entropy_weight, diversity_weight, commitment_weight)
        super().__init__(latent_channels, num_subspaces, 1.0, *weights, temperature, entropy_bits)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        indices = self.encode(z)
        codes = self.decode(indices)
        with torch.autocast(z.device.type, enabled=False):
            loss, logs = self._entropy_loss(z.float())
            loss = loss + self.commitment_weight * (z.float() - codes).square().mean()
        return QuantizerOutput(codes.to(z.dtype) + (z - z.detach()), indices, loss, logs)
