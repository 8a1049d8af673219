"""The contract that every quantizer keeps, and the table in which quantizers are found by name.

A quantizer stands between a transform and the statistics of latents:

    z (B, in_channels, h, w)  --encode-->  indices (B, G, h, w)  --decode-->      codes (B, code_channels, h, w)
                                                                 --to_latents-->  latents (B, latent_channels, h, w)

Codes are everything that a codeword stands for, and what synthesis gets. Latents are the part that a diffusion model
sees. For most quantizers both are the same numbers.
"""

import functools
import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from pqdiff.suggestions import did_you_mean

QUANTIZERS: dict[str, type["Quantizer"]] = {}

# Names of all tensors that registered quantizers keep in fp32 when a model is loaded in half precision.
FP32_TENSORS: list[str] = []


class QuantizerOutput(NamedTuple):
    """What `forward` returns.

    Attributes:
        codes: `(B, code_channels, h, w)` in the dtype of z, with the gradient that training needs.
        indices: int64 tokens `(B, G, h, w)`; None if the quantizer has no tokens while it trains.
        loss: scalar fp32, already weighted by the quantizer's own weights; 0 where there is nothing to learn.
        logs: detached scalars for the training log, such as entropy terms or KL bits.
    """

    codes: torch.Tensor
    indices: torch.Tensor | None
    loss: torch.Tensor
    logs: dict[str, torch.Tensor]


class Fp32Module(nn.Module):
    """A module whose tensors keep their dtype: `.half()` and `.to(torch.bfloat16)` move them, but do not round them."""

    def _apply(self, fn, recurse: bool = True):
        def keep_dtype(tensor: torch.Tensor) -> torch.Tensor:
            probe = fn(tensor.new_empty(0))
            return fn(tensor) if probe.dtype == tensor.dtype else tensor.to(device=probe.device)

        return super()._apply(keep_dtype, recurse)


# Methods beside `forward` that need the weights.
_METHODS = ("encode", "decode", "to_latents", "nearest", "lift", "posterior_mean")


class Choices(NamedTuple):
    """What a search may put in place of the codewords of tokens. See `Quantizer.choices`.

    Attributes:
        first: number of the first token of a position that may change; all after it may, too.
        codebooks: `(S, K, D)`, fp32: one table for each token from `first` on.
        units: `(B, S, D, n)` or what broadcasts to it: how much a coordinate of a codeword changes codes.
        codes: function from codewords `(B, S, D, n)` to codes `(B, code_channels, h, w)`, linear but for a constant.
    """

    first: int
    codebooks: torch.Tensor
    units: torch.Tensor
    codes: Callable[[torch.Tensor], torch.Tensor]


def _with_weights(method):
    """The method, which fetches the weights first if accelerate has offloaded them: its hooks only know `forward`."""

    @functools.wraps(method)
    def wrapper(self, *args, **kwargs):
        hook = getattr(self, "_hf_hook", None)
        if hook is None or not any(t.is_meta for t in self._own_tensors()):
            return method(self, *args, **kwargs)
        args, kwargs = hook.pre_forward(self, *args, **kwargs)
        return hook.post_forward(self, method(self, *args, **kwargs))

    return wrapper


class Quantizer(Fp32Module, ABC):
    """Base of all quantizers.

    A subclass sets the three numbers of channels, implements `codebook_sizes`, `forward`, `encode`, `decode` and
    `nearest`, and is found by name after `@register_quantizer("name")`. Its constructor takes `latent_channels` first,
    then JSON values only: they are the `quantizer_config` of a saved autoencoder.

    Attributes:
        in_channels: channels of z.
        code_channels: channels of codes.
        latent_channels: channels of latents.
        has_posterior_mean: whether there is soft snapping, `snap` with a noise level.
        can_restart: whether codewords that are not in use can be moved, `restart`.
        latents_tell_tokens: whether `nearest` finds the tokens again whose latents it gets.
        fp32_tensors: names of parameters, buffers or submodules that stay in fp32 when a model is loaded in half precision.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        for name in _METHODS:
            if name in cls.__dict__:
                setattr(cls, name, _with_weights(cls.__dict__[name]))
        cls.has_posterior_mean = cls.posterior_mean is not Quantizer.posterior_mean

    in_channels: int
    code_channels: int
    latent_channels: int
    fp32_tensors: tuple[str, ...] = ()
    has_posterior_mean: bool = False
    can_restart: bool = False
    latents_tell_tokens: bool = True

    @property
    @abstractmethod
    def codebook_sizes(self) -> tuple[int, ...]:
        """Number of values that each of the G tokens of a position can take."""

    @property
    def bits_per_position(self) -> float:
        """Information that one position can carry: the sum of log2 of the codebook sizes."""
        return sum(math.log2(size) for size in self.codebook_sizes)

    @abstractmethod
    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        """Quantize z `(B, in_channels, h, w)` for training: codes with a gradient, and what there is to learn."""

    @abstractmethod
    def encode(self, z: torch.Tensor) -> torch.Tensor:
        """int64 tokens `(B, G, h, w)` of z `(B, in_channels, h, w)`, any floating dtype. Nothing is learned or counted."""

    @abstractmethod
    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        """Codes `(B, code_channels, h, w)` of integer tokens `(B, G, h, w)`, fp32."""

    def to_latents(self, indices: torch.Tensor) -> torch.Tensor:
        """Latents `(B, latent_channels, h, w)` of integer tokens `(B, G, h, w)`, fp32."""
        return self.decode(indices)

    @abstractmethod
    def nearest(self, latents: torch.Tensor) -> torch.Tensor:
        """int64 tokens `(B, G, h, w)` whose latents are nearest to the given ones `(B, latent_channels, h, w)`."""

    def lift(self, latents: torch.Tensor) -> torch.Tensor:
        """Codes of latents as they are, not snapped, fp32; what latents do not show is 0."""
        return latents.float()

    def snap(self, latents: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Codes of noisy latents `(B, latent_channels, h, w)`, fp32.

        Args:
            latents: codewords plus an error.
            noise: standard deviation of the error `(latent_channels,)`, positive: the result is then the mean of the
                codes given the latents (soft snapping). None for the nearest codeword.
        """
        codes = self.decode(self.nearest(latents)) if noise is None else self.posterior_mean(latents, noise)
        return codes.masked_fill(latents.isnan().any(dim=1, keepdim=True), torch.nan)  # NaN stays visible

    def posterior_mean(self, latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Codes `(B, code_channels, h, w)` of least expected squared error, given latents and their noise. See `snap`."""
        raise ValueError(f"{type(self).__name__} has no soft snapping: use quantize=True or quantize=False")

    def choices(self, indices: torch.Tensor) -> Choices:
        """Which codewords other tokens than `indices` `(B, G, h, w)` would stand for, for `models/token_search.py`.

        Raises:
            ValueError: if tokens cannot be chosen one by one.
        """
        raise ValueError(
            f"{type(self).__name__} has no tokens that can be chosen one by one: token search needs those"
        )

    def set_frequencies(self, counts: list[torch.Tensor]) -> None:
        """Take in how often each value of each token occurs, G tensors `(K,)`: the prior of soft snapping."""

    def load_features(self, features: torch.Tensor) -> None:
        """Take in a table of image features in place of codewords `(codebook_size, feature_dim)`.

        Raises:
            ValueError: if there is no place for one.
        """
        raise ValueError(f"{type(self).__name__} has no table of features: use quantizer_type frozen_codebook")

    def after_step(self, step: int) -> None:
        """Called after optimizer step number `step` (from 0), for annealing. State belongs in buffers."""

    def restart(
        self, unused: list[torch.Tensor], z: torch.Tensor, generator: torch.Generator
    ) -> list[tuple[str, torch.Tensor]]:
        """Move codewords that are not in use to where z is.

        Args:
            unused: for each token a bool mask `(K,)` of values that have not occurred.
            z: `(B, in_channels, h, w)` of images, the same on all ranks.
            generator: on the CPU; which vectors are taken.

        Returns:
            Names of the tensors that changed, each with a bool mask of the entries that did.

        Raises:
            ValueError: if codewords cannot be moved.
        """
        raise ValueError(f"{type(self).__name__} cannot restart codewords: use --restart_dead_codewords 0")

    def _own_tensors(self) -> list[torch.Tensor]:
        """Parameters and buffers of this module, without those of submodules."""
        return [tensor for tensor in (*self._parameters.values(), *self._buffers.values()) if tensor is not None]

    def _check(self, x: torch.Tensor, channels: int, name: str) -> None:
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{name} must be (B, {channels}, h, w), got {tuple(x.shape)}")
        if not x.is_floating_point():
            raise ValueError(f"{name} must have a floating dtype, got {x.dtype}")

    def _check_indices(self, indices: torch.Tensor) -> None:
        tokens = len(self.codebook_sizes)
        if indices.ndim != 4 or indices.shape[1] != tokens:
            raise ValueError(f"indices must be (B, {tokens}, h, w), got {tuple(indices.shape)}")


def register_quantizer(name: str):
    """Class decorator: make a quantizer known as `name` to `build_quantizer` and `AutoencoderPQ`."""

    def register(cls: type[Quantizer]) -> type[Quantizer]:
        if name in QUANTIZERS:
            raise ValueError(f"quantizer name {name!r} is already taken by {QUANTIZERS[name].__name__}")
        QUANTIZERS[name] = cls
        FP32_TENSORS.extend(tensor for tensor in cls.fp32_tensors if tensor not in FP32_TENSORS)
        return cls

    return register


def build_quantizer(name: str, latent_channels: int, config: dict | None = None) -> Quantizer:
    """The registered quantizer `name` for latents of `latent_channels` channels.

    Raises:
        ValueError: for a name or a key of `config` that does not exist (with the nearest that does), and for values
            that the quantizer refuses.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"quantizer_type ({name!r}) is not registered: {did_you_mean(name, QUANTIZERS)}")
    config = dict(config or {})
    parameters = list(inspect.signature(QUANTIZERS[name].__init__).parameters.values())[2:]  # without self, channels
    allowed = [parameter.name for parameter in parameters]
    for key in config:
        if key not in allowed:
            raise ValueError(
                f"quantizer_config has the unknown key {key!r} for {name!r}: {did_you_mean(key, allowed)}"
            )
    for parameter in parameters:
        if parameter.default is parameter.empty and parameter.name not in config:
            raise ValueError(f"quantizer_config lacks the key {parameter.name!r}, which {name!r} needs")
    return QUANTIZERS[name](latent_channels, **config)


def check_weights(**weights: float) -> None:
    """ValueError unless each of the named weights is a finite number, 0 or greater."""
    for name, weight in weights.items():
        if not 0 <= weight < float("inf"):
            raise ValueError(f"{name} ({weight}) must be a finite number, 0 or greater")
