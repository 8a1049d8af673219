"""Random numbers that belong to a sample of a step, not to a process: resumed runs and other splits draw the same."""

import hashlib

import torch


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """Generator on the CPU for e.g. `(seed, "noise", step, slot)`; different places are independent."""
    digest = hashlib.blake2b(" ".join(map(str, (seed, *place))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
