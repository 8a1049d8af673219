"""Random numbers that depend on a sample and a step, not on a process: a resumed run draws the same ones."""

import hashlib

import torch


def generator_for(seed: int, *place: int | str) -> torch.Generator:
    """Generator on the CPU for e.g. `(seed, "noise", step, slot)`; different places are independent."""
    digest = hashlib.blake2b(" ".join(map(str, (seed, *place))).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
