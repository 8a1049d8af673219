"""The networks of the PQGAN paper: the encoder and decoder of VQGAN as diffusers has them, with a 1x1 convolution beside
the quantizer on each side."""

import math
from collections.abc import Sequence

import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from torch import nn

from pqdiff.transforms.base import Transform, register_transform


@register_transform("conv")
class ConvTransform(Transform):
    """Convolutional encoder and decoder.

    Args:
        in_channels: channels of the image.
        z_channels: channels that the quantizer codes.
        code_channels: channels of codes.
        block_out_channels: widths of the levels; their number sets F.
        attention_levels: levels with attention in every block, counted from 0 (full resolution); None for the last. The
            middle blocks always have attention.
        layers_per_block: residual blocks per level of the encoder (the decoder has one more).
        act_fn: activation.
        norm_num_groups: groups of GroupNorm; must divide all widths.
        mid_channels: channels between a network and its 1x1 convolution.
        image_mean: means to subtract from images in [0, 1] per channel; None to take [-1, 1] as it is.
        image_std: standard deviations that go with them.
        norm_type: of the decoder. With `spatial` every norm sees the codes, as in MoVQ (Zheng et al., arXiv 2209.09002);
            `mid_channels` must then be as many as codes have, and all widths multiples of 32, the groups of such norms.

    Raises:
        ValueError: if arguments do not fit each other.
    """

    def __init__(
        self,
        in_channels: int,
        z_channels: int,
        code_channels: int,
        block_out_channels: Sequence[int] = (128, 256, 256, 512),
        attention_levels: Sequence[int] | None = None,
        layers_per_block: int = 2,
        act_fn: str = "silu",
        norm_num_groups: int = 32,
        mid_channels: int = 256,
        image_mean: Sequence[float] | None = None,
        image_std: Sequence[float] | None = None,
        norm_type: str = "group",
    ):
        super().__init__()
        self.block_out_channels = tuple(block_out_channels)
        levels = range(len(self.block_out_channels))
        attention = {levels[-1]} if attention_levels is None else set(attention_levels)
        if not attention <= set(levels):
            raise ValueError(f"attention_levels ({attention_levels}) must be levels from 0 to {levels[-1]}")
        if norm_num_groups < 1 or any(width % norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"norm_num_groups ({norm_num_groups}) must divide block_out_channels ({block_out_channels})"
            )
        if norm_type not in ("group", "spatial"):
            raise ValueError(f"norm_type ({norm_type!r}) must be 'group' or 'spatial'")
        if norm_type == "spatial" and any(width % 32 for width in self.block_out_channels):
            raise ValueError(f"norm_type 'spatial' needs block_out_channels ({block_out_channels}) divisible by 32")
        if norm_type == "spatial" and mid_channels != code_channels:
            raise ValueError(
                f"norm_type 'spatial' needs mid_channels ({mid_channels}) = channels of codes ({code_channels})"
            )
        _check_image_statistics(image_mean, image_std, in_channels)
        self.norm_type = norm_type
        self.image_mean, self.image_std = image_mean, image_std
        down = tuple("AttnDownEncoderBlock2D" if level in attention else "DownEncoderBlock2D" for level in levels)
        up = tuple("AttnUpDecoderBlock2D" if level in attention else "UpDecoderBlock2D" for level in reversed(levels))
        shared = {
            "block_out_channels": self.block_out_channels,
            "layers_per_block": layers_per_block,
            "act_fn": act_fn,
            "norm_num_groups": norm_num_groups,
        }
        self.encoder = Encoder(in_channels, mid_channels, down_block_types=down, double_z=False, **shared)
        self.quant_conv = nn.Conv2d(mid_channels, z_channels, 1)
        self.post_quant_conv = nn.Conv2d(code_channels, mid_channels, 1)
        self.decoder = Decoder(mid_channels, in_channels, up_block_types=up, norm_type=norm_type, **shared)

    @property
    def last_layer(self) -> nn.Parameter:
        return self.decoder.conv_out.weight

    def group_of(self, name: str) -> str:
        return "encoder" if name.startswith(("encoder.", "quant_conv.")) else "decoder"

    def silence(self) -> None:
        for layer in (self.quant_conv, self.decoder.conv_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def analysis(self, image: torch.Tensor) -> torch.Tensor:
        if self.image_mean is not None:
            mean, std = self._statistics(image)
            image = ((image + 1) / 2 - mean) / std
        return self.quant_conv(self.encoder(image))

    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        image = self.decoder(self.post_quant_conv(codes), codes if self.norm_type == "spatial" else None)
        if self.image_mean is not None:
            mean, std = self._statistics(image)
            image = (image * std + mean) * 2 - 1
        return image

    def _statistics(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return tuple(
            torch.tensor(values, dtype=image.dtype, device=image.device).view(-1, 1, 1)
            for values in (self.image_mean, self.image_std)
        )


def _check_image_statistics(mean: Sequence[float] | None, std: Sequence[float] | None, channels: int) -> None:
    """ValueError unless there is a mean and a positive standard deviation per channel, or neither."""
    if (mean is None) != (std is None):
        raise ValueError("image_mean and image_std must be given together, or neither")
    if mean is None:
        return
    if not len(mean) == len(std) == channels or min(std) <= 0 or not all(map(math.isfinite, (*mean, *std))):
        raise ValueError(
            f"image_mean ({mean}) and image_std ({std}) must hold {channels} finite values each, std positive"
        )
