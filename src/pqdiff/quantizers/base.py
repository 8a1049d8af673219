"""The contract every quantizer keeps, and the table they are found in by name."""

import difflib
import inspect
import math
from typing import NamedTuple

import torch
from torch import nn

QUANTIZERS: dict[str, type["Quantizer"]] = {}


class QuantizerOutput(NamedTuple):
    """What a quantizer returns.

    Attributes:
        z_q: quantized latents `(B, C, H, W)`, exactly the codewords, in the dtype of z. Their gradient reaches z
            unchanged (straight-through).
        indices: int64 tokens `(B, G, H, W)`, G tokens per position.
        loss: scalar fp32, already weighted by the quantizer's own weights; 0 where there is nothing to learn.
    """

    z_q: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor


class Fp32Module(nn.Module):
    """A module whose tensors keep their precision: `.half()` and `.to(torch.bfloat16)` do not round them."""

    def _apply(self, fn, recurse: bool = True):
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(device=probe.device)

        return super()._apply(keep_dtype, recurse)


class Quantizer(Fp32Module):
    """Base of all quantizers: maps latents `(B, C, H, W)` to codewords and integer tokens.

    A subclass sets `latent_channels` (C), implements `forward`, `indices_to_latents` and `codebook_sizes`, and is
    found by name after `@register_quantizer("name")`. Its constructor takes `latent_channels` first, then JSON values
    only: they become the `quantizer_config` of a saved autoencoder.
    """

    latent_channels: int

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        """Quantize latents `(B, C, H, W)` of any floating dtype: search in fp32, ties to the lowest index."""
        raise NotImplementedError

    def indices_to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        """Codewords `(B, C, H, W)` of integer tokens `(B, G, H, W)`, exactly those that `forward` gives, in fp32."""
        raise NotImplementedError

    @property
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of values each of the G tokens of a position can take."""
        raise NotImplementedError

    @property
    def bits_per_position(self) -> float:
        """Information that one position can carry: the sum of log2 of the codebook sizes."""
        return sum(math.log2(size) for size in self.codebook_sizes)


def register_quantizer(name: str):
    """Class decorator: make a quantizer known as `name` to `build_quantizer` and `AutoencoderPQ`."""

    def register(cls: type[Quantizer]) -> type[Quantizer]:
        if name in QUANTIZERS:
            raise ValueError(f"quantizer name {name!r} is already taken by {QUANTIZERS[name].__name__}")
        QUANTIZERS[name] = cls
        return cls

    return register


def build_quantizer(name: str, latent_channels: int, config: dict | None = None) -> Quantizer:
    """The registered quantizer `name` for latents of `latent_channels` channels.

    Raises:
        ValueError: for a name or a key of `config` that does not exist (with the nearest that does), and for values
            that the quantizer refuses.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer ({name!r}) is not registered{_suggest(name, QUANTIZERS)}")
    config = dict(config or {})
    allowed = list(inspect.signature(QUANTIZERS[name].__init__).parameters)[2:]  # without self and latent_channels
    for key in config:
        if key not in allowed:
            raise ValueError(f"quantizer_config has the unknown key {key!r} for {name!r}{_suggest(key, allowed)}")
    return QUANTIZERS[name](latent_channels, **config)


def _suggest(word: str, known) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f": did you mean {close[0]!r}?" if close else f": choose one of {', '.join(sorted(known))}"
