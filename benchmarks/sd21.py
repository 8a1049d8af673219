"""Stable Diffusion 2.1 at its true size with random weights, and the rows of the paper's table 3.

Speed and memory depend on shapes alone, so nothing is downloaded. `TINY` has the same structure, for tests.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel

from pqdiff import AutoencoderPQ
from pqdiff.models.presets import preset_config

# Parameters of the UNet by number of latent channels.
UNET_PARAMETERS = {4: 865_910_724, 128: 866_625_088}
TOKENS = 77


@dataclass(frozen=True)
class Row:
    """One row of table 3: what the UNet sees, and which autoencoder decodes it (None: the KL one of SD2.1)."""

    latent_channels: int
    side: int
    preset: str | None


ROWS = {
    "sd21-768": Row(4, 96, None),
    "hr-1536": Row(128, 96, "f16-d128-s64-k128"),
    "precise-768": Row(128, 96, "f8-d128-s64-k512"),
    "quick-768": Row(128, 48, "f16-d128-s64-k128"),
}
BASE = "sd21-768"


@dataclass(frozen=True)
class Size:
    """Widths of every network. `side_divisor` shrinks the latents of the rows."""

    unet: dict
    text: dict
    kl: dict
    pq: dict  # overrides of a preset's transform_config
    pq_width: int | None = None  # of all levels; None for the preset's own
    side_divisor: int = 1


FULL = Size(
    unet={
        "sample_size": 96,
        "block_out_channels": (320, 640, 1280, 1280),
        "attention_head_dim": (5, 10, 20, 20),  # heads; each 64 wide
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "upcast_attention": True,
    },
    text={  # OpenCLIP ViT-H/14 without its last layer
        "vocab_size": 49408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 512,
    },
    kl={"block_out_channels": (128, 256, 512, 512)},
    pq={},
)
TINY = Size(
    unet={
        "sample_size": 8,
        "block_out_channels": (8, 8, 16, 16),
        "attention_head_dim": (1, 1, 2, 2),
        "cross_attention_dim": 16,
        "use_linear_projection": True,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    },
    text={
        "vocab_size": 64,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    },
    kl={"block_out_channels": (8, 8, 8, 8), "norm_num_groups": 4},
    pq={"mid_channels": 8, "norm_num_groups": 4, "layers_per_block": 1},
    pq_width=8,
    side_divisor=12,
)


def build_unet(size: Size, latent_channels: int, dtype: torch.dtype, device: str = "cpu") -> UNet2DConditionModel:
    """UNet with random weights; at full size its parameters are counted.

    Raises:
        ValueError: if the full-size UNet does not have the parameters of the published one.
    """
    with _default(dtype, device):
        unet = UNet2DConditionModel(in_channels=latent_channels, out_channels=latent_channels, **size.unet).eval()
    if size is FULL:
        check_unet(unet)
    return unet


def check_unet(unet: UNet2DConditionModel) -> None:
    """Raise a `ValueError` unless `unet` has as many parameters as SD2.1's with its number of channels."""
    channels, count = unet.config.in_channels, count_parameters(unet)
    if count != UNET_PARAMETERS[channels]:
        raise ValueError(
            f"unet ({count:,} parameters) must have {UNET_PARAMETERS[channels]:,} at {channels} channels: "
            "this diffusers builds another network"
        )


def build_text_encoder(size: Size, dtype: torch.dtype, device: str = "cpu") -> CLIPTextModel:
    """Text encoder with random weights."""
    with _default(dtype, device):
        return CLIPTextModel(CLIPTextConfig(max_position_embeddings=TOKENS, **size.text)).eval()


def build_autoencoder(
    size: Size, preset: str | None, dtype: torch.dtype, device: str = "cpu"
) -> AutoencoderPQ | AutoencoderKL:
    """Autoencoder of a row with random weights; as `from_pretrained` does, codewords stay in fp32."""
    with _default(torch.float32, device):
        if preset is None:
            autoencoder = AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                layers_per_block=2,
                scaling_factor=0.18215,
                **size.kl,
            )
        else:
            transform = {**preset_config(preset)["transform_config"], **size.pq}
            if size.pq_width is not None:
                transform["block_out_channels"] = (size.pq_width,) * len(transform["block_out_channels"])
            autoencoder = AutoencoderPQ.from_preset(preset, transform_config=transform)
    return autoencoder.to(dtype).eval()


def build_scheduler() -> DDIMScheduler:
    """Scheduler of the 768 px checkpoint."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def count_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def weight_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


@contextlib.contextmanager
def _default(dtype: torch.dtype, device: str) -> Iterator[None]:
    """New tensors have this type and place: full-size weights never exist in fp32 first."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)
