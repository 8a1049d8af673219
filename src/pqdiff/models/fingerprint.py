"""A short hash of what a model computes: its configuration and weights, not its name or folder."""

import hashlib
import json

import torch
from torch import nn

# Arguments that came after the first models, at the values that change nothing: codes of those models stay readable.
_ADDED_LATER = {
    "class_bases": 0,
    "class_candidates": 8,
    "class_components": 0,
    "gain_bands": 0,
    "patch_network_channels": 0,
    "patch_network_blocks": 2,
    "refiner_channels": 0,
    "refiner_blocks": 4,
}


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that equal models share, whatever their device; a cast to half precision changes them."""
    digest = hashlib.sha256()
    config = {
        key: value
        for key, value in dict(model.config).items()
        if not key.startswith("_") and (key not in _ADDED_LATER or value != _ADDED_LATER[key])
    }
    digest.update(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
