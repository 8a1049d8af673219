"""Tiny autoencoders with both kinds of network."""

import pytest
import torch

from pqdiff import AutoencoderPQ

TINY = {
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "block_out_channels": (8, 8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "z_channels": 8,
    "latent_channels": 6,
    "quantizer_config": {"num_subspaces": 3, "codebook_size": 16},
    "sample_size": 32,
}
KINDS = {
    "classes": {
        "conv_networks": False,
        "patch_shortcut": True,
        "hidden_channels": 6,
        "class_bases": 4,
        "class_components": 10,
    },
    "refined": {"conv_networks": False, "patch_shortcut": True, "refiner_channels": 8, "refiner_blocks": 1},
    "patch_networks": {
        "conv_networks": False,
        "patch_shortcut": True,
        "patch_network_channels": 8,
        "patch_network_blocks": 1,
    },
    "networks": {},
    "linear": {"conv_networks": False, "patch_shortcut": True},
    "hidden": {"conv_networks": False, "patch_shortcut": True, "hidden_channels": 6},
    "both": {"patch_shortcut": True, "hidden_channels": 3},
}


def build(kind: str, **overrides) -> AutoencoderPQ:
    """A tiny autoencoder (F = 4) whose latents are spread over the codebooks and have statistics."""
    torch.manual_seed(0)
    statistics = {"channel_mean": [0.1 * i for i in range(6)], "channel_std": [1.0 + i for i in range(6)]}
    model = AutoencoderPQ(**{**TINY, **KINDS[kind], **statistics, **overrides})
    if model.patch_transform is not None and model.patch_transform.hidden_codewords is not None:
        torch.nn.init.normal_(model.patch_transform.hidden_codewords)
    if model.patch_transform is not None and model.patch_transform.patch_classes is not None:
        torch.nn.init.normal_(model.patch_transform.patch_classes.log_scales, std=0.5)
    if model.refiner is not None:
        torch.nn.init.normal_(model.refiner.last.weight, std=0.1)
        torch.nn.init.normal_(model.refiner.places)
    return model.eval()


@pytest.fixture(params=KINDS)
def autoencoder(request):
    return build(request.param)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(2, 3, 32, 48) * 2 - 1
