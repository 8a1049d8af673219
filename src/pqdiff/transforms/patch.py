"""A linear transform of F x F patches, one patch for each position. Alone, or lapped over the borders of its neighbors."""

import torch
import torch.nn.functional as F
from torch import nn

from pqdiff.transforms.base import Transform, register_transform
from pqdiff.transforms.borders import border_rotation, filter_borders
from pqdiff.transforms.pointwise import PointwiseConv, TiedPointwiseConv


@register_transform("patch")
class PatchTransform(Transform):
    """Patches of pixels to coefficients and back.

    Args:
        in_channels: channels C of the image.
        z_channels: coefficients of a patch that the quantizer codes.
        code_channels: coefficients of codes.
        patch_size: side F of a patch in pixels, a power of 2.
        tied: whether synthesis is the transpose of analysis, as it is for orthonormal coefficients. Both then share one
            weight, and `z_channels` must be `code_channels`.
        overlap: pixels across each border between patches that are filtered before patches are cut, and the other way
            round after they are put together (`borders.py`): even, at most F; 0 for patches that know no neighbors.

    Raises:
        ValueError: if the numbers do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        code_channels: int,
        patch_size: int = 8,
        tied: bool = False,
        overlap: int = 0,
    ):
        super().__init__()
        if patch_size < 1 or patch_size & (patch_size - 1):
            raise ValueError(f"patch_size ({patch_size}) must be a power of 2")
        if tied and z_channels != code_channels:
            raise ValueError(f"tied needs as many z_channels ({z_channels}) as code_channels ({code_channels})")
        if not 0 <= overlap <= patch_size or overlap % 2:
            raise ValueError(f"overlap ({overlap}) must be even, from 0 to patch_size ({patch_size})")
        pixels = in_channels * patch_size**2
        self.reach = 1 if overlap else 0
        if overlap:
            self.register_buffer("border_rotation", border_rotation(overlap), persistent=False)
        self.overlap = overlap
        self.patch_size, self.tied = patch_size, tied
        # Channels of an image whose 2 x 2 patches were stacked again and again: stock pipelines count the levels.
        self.block_out_channels = tuple(in_channels * 4**level for level in range(patch_size.bit_length()))
        if tied:
            self.analysis_conv = TiedPointwiseConv(pixels, z_channels)
        else:
            self.analysis_conv = PointwiseConv(pixels, z_channels)
            self.synthesis_conv = PointwiseConv(code_channels, pixels)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.analysis_conv.weight if self.tied else self.synthesis_conv.weight

    def group_of(self, name: str) -> str:
        return "linear"

    def analysis(self, image: torch.Tensor) -> torch.Tensor:
        # Without autocast: coefficients that bf16 has rounded belong to other classes and codewords.
        with torch.autocast(image.device.type, enabled=False):
            pixels = image.to(self.analysis_conv.weight.dtype)
            if self.overlap:
                pixels = filter_borders(pixels, self.patch_size, self.border_rotation)
            return self.analysis_conv(F.pixel_unshuffle(pixels, self.patch_size))

    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        pixels = self.analysis_conv(codes, transposed=True) if self.tied else self.synthesis_conv(codes)
        image = F.pixel_shuffle(pixels, self.patch_size)
        return filter_borders(image, self.patch_size, self.border_rotation.T) if self.overlap else image
