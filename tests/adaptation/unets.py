"""Tiny UNets of the families that the adapter takes, and inputs for them."""

import torch
from diffusers import UNet2DConditionModel

from tests.tiny import TEXT_WIDTH, tiny_unet

OLD = 4
SIDE = 8
SDXL = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 4 * 6 + 8,
    "use_linear_projection": True,
    "transformer_layers_per_block": (1, 2),
}


def old_unet(**config) -> UNet2DConditionModel:
    """A tiny UNet for the old latents; always the same weights."""
    return tiny_unet(OLD, **config)


def call_inputs(unet: UNet2DConditionModel, batch: int = 2, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random arguments for the UNet's forward, in its dtype; the grid is 8 x 10."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator).to(unet.dtype)

    inputs = {
        "sample": normal(batch, unet.config.in_channels, SIDE, SIDE + 2),
        "timestep": torch.randint(1000, (batch,), generator=generator),
        "encoder_hidden_states": normal(batch, 3, TEXT_WIDTH),
    }
    if unet.config.addition_embed_type:
        inputs["added_cond_kwargs"] = {"text_embeds": normal(batch, 8), "time_ids": normal(batch, 6)}
    return inputs
