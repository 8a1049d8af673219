"""Real components of Stable Diffusion, as small as they get, for every test that needs some.

Pictures are 32 x 32 unless asked otherwise; both autoencoders have F = 2, so the UNet works on 16 x 16 positions. The base
has 4 latent channels and predicts v, as Stable Diffusion 2.1 does; product-quantized latents have 8. Each call seeds torch
and gives a new object with the same weights.
"""

import json
import string
import tempfile
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pqdiff import AutoencoderPQ

SIDE = 32
FACTOR = 2
BASE_CHANNELS = 4
PQ_CHANNELS = 8
TEXT_WIDTH = 16
MAX_TOKENS = 16
_SPECIAL = ("<|startoftext|>", "<|endoftext|>")
_LETTERS = string.ascii_lowercase
_TOKENS = (*_SPECIAL, *_LETTERS, *(f"{letter}</w>" for letter in _LETTERS))


def tiny_unet(channels: int = PQ_CHANNELS, **overrides) -> UNet2DConditionModel:
    """A UNet for `channels` latent channels; inpainting UNets have more `in_channels`, given as an override."""
    torch.manual_seed(0)
    config = {
        "sample_size": SIDE // FACTOR,
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
    }
    return UNet2DConditionModel(**{**config, **overrides}).eval()


def tiny_autoencoder(linear: bool = False, **overrides) -> AutoencoderPQ:
    """An `AutoencoderPQ` with small networks, or (`linear`) with the patch transform."""
    torch.manual_seed(0)
    channels = overrides.get("latent_channels", PQ_CHANNELS)
    conv = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_channels": 8}
    statistics = {
        "mean": tuple(0.1 * (i - 1) for i in range(channels)),
        "std": tuple(0.5 + 0.25 * i for i in range(channels)),
    }
    config = {
        "transform_type": "patch" if linear else "conv",
        "transform_config": {"patch_size": FACTOR} if linear else conv,
        "quantizer_config": {"num_subspaces": channels // 2, "codebook_size": 16},
        "latent_channels": channels,
        "statistics_config": statistics,
        "sample_size": SIDE,
    }
    return AutoencoderPQ(**{**config, **overrides}).eval()


def tiny_kl_autoencoder(**overrides) -> AutoencoderKL:
    """The 4-channel autoencoder of the base."""
    torch.manual_seed(0)
    config = {
        "down_block_types": ("DownEncoderBlock2D",) * 2,
        "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": BASE_CHANNELS,
        "sample_size": SIDE,
    }
    return AutoencoderKL(**{**config, **overrides}).eval()


def tiny_tokenizer(folder: str | Path | None = None) -> CLIPTokenizer:
    """A tokenizer that spells words letter by letter; its files go to `folder`, or are not kept."""
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            return tiny_tokenizer(temporary)
    folder = Path(folder)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(_TOKENS)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=MAX_TOKENS)


def tiny_text_encoder(**overrides) -> CLIPTextModel:
    """A text encoder for `tiny_tokenizer`, of width `TEXT_WIDTH`."""
    torch.manual_seed(0)
    config = {
        "vocab_size": len(_TOKENS),
        "hidden_size": TEXT_WIDTH,
        "intermediate_size": TEXT_WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": _TOKENS.index(_SPECIAL[0]),
        "eos_token_id": _TOKENS.index(_SPECIAL[1]),
        "pad_token_id": _TOKENS.index(_SPECIAL[1]),
    }
    return CLIPTextModel(CLIPTextConfig(**{**config, **overrides})).eval()


def tiny_scheduler(prediction_type: str = "v_prediction", **overrides) -> DDIMScheduler:
    """The noise schedule of Stable Diffusion."""
    config = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "prediction_type": prediction_type,
    }
    return DDIMScheduler(**{**config, **overrides})


def tiny_components(**overrides) -> dict:
    """Constructor arguments of a pipeline on product-quantized latents, without a safety checker."""
    components = {
        "vae": tiny_autoencoder,
        "text_encoder": tiny_text_encoder,
        "tokenizer": tiny_tokenizer,
        "unet": tiny_unet,
        "scheduler": tiny_scheduler,
    }
    built = {name: build() for name, build in components.items() if name not in overrides}
    rest = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return {**built, **rest, **overrides}


def tiny_base_pipeline(pipeline_class: type = StableDiffusionPipeline, **overrides):
    """A stock pipeline with a KL autoencoder of 4 channels: what adaptation starts from."""
    built = {"vae": tiny_kl_autoencoder, "unet": lambda: tiny_unet(BASE_CHANNELS)}
    base = {name: build() for name, build in built.items() if name not in overrides}
    pipe = pipeline_class(**tiny_components(**{**base, **overrides}))
    pipe.set_progress_bar_config(disable=True)
    return pipe
