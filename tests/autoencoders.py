"""Tiny autoencoders (F = 4) of every kind."""

import torch

from pqdiff import AutoencoderPQ

CONV = {"block_out_channels": (8, 8, 16), "layers_per_block": 1, "norm_num_groups": 4, "mid_channels": 8}
PATCH = {"patch_size": 4}
PRODUCT = {"num_subspaces": 3, "codebook_size": 16}
TINY = {
    "transform_type": "conv",
    "transform_config": CONV,
    "quantizer_type": "product",
    "quantizer_config": PRODUCT,
    "latent_channels": 6,
    "sample_size": 32,
}
_LINEAR = {"transform_type": "patch", "transform_config": PATCH}
KINDS = {
    "networks": {},
    "linear": {**_LINEAR},
    "tied": {"transform_type": "patch", "transform_config": {**PATCH, "tied": True}},
    "lapped": {"transform_type": "patch", "transform_config": {**PATCH, "overlap": 4}},
    "hidden": {**_LINEAR, "quantizer_config": {**PRODUCT, "hidden_channels": 6}},
    "classes": {
        **_LINEAR,
        "quantizer_type": "classified_product",
        "quantizer_config": {**PRODUCT, "hidden_channels": 6, "components": 10, "bases": 4},
    },
    "refined": {**_LINEAR, "refiner_config": {"channels": 8, "blocks": 1}},
    "both": {
        "transform_type": "sum",
        "transform_config": {"parts": [{"type": "patch", "config": PATCH}, {"type": "conv", "config": CONV}]},
        "quantizer_config": {**PRODUCT, "hidden_channels": 3},
    },
}


def build(kind: str, **overrides) -> AutoencoderPQ:
    """A tiny autoencoder whose latents are spread over the codebooks and have statistics."""
    torch.manual_seed(0)
    statistics = {"mean": [0.1 * i for i in range(6)], "std": [1.0 + i for i in range(6)]}
    model = AutoencoderPQ(**{**TINY, **KINDS[kind], "statistics_config": statistics, **overrides})
    if hasattr(model.quantizer, "log_scales"):
        torch.nn.init.normal_(model.quantizer.log_scales, std=0.5)
        # Equal variances would make all classes equally likely, and rounding would choose among them.
        torch.nn.init.normal_(model.quantizer.log_variances, std=0.5)
    if model.refiner is not None:
        torch.nn.init.normal_(model.refiner.last.weight, std=0.1)
        torch.nn.init.normal_(model.refiner.places)
    return model.eval()
