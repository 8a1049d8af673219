"""A short hash of what a model computes: its configuration and weights, not its name or folder."""

import hashlib
import json

import torch
from torch import nn

_RECORDS = ("preset", "sample_size")  # parts of the configuration that change no number


def fingerprint(model: nn.Module) -> str:
    """16 hexadecimal digits that equal models share, whatever their device; a cast to half precision changes them."""
    digest = hashlib.sha256()
    config = {
        key: value for key, value in dict(model.config).items() if not key.startswith("_") and key not in _RECORDS
    }
    digest.update(json.dumps(config, sort_keys=True, default=list).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
