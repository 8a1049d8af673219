"""What `AutoencoderPQ` accepts: images, latents and tokens of the right shape, and a way to quantize.

Every function returns nothing and raises a `ValueError` that names the argument, its value, and what to do.
"""

import functools
import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence

import torch

from pqdiff.clean_text import one_line
from pqdiff.suggestions import did_you_mean


def check_image(x: torch.Tensor, channels: int, factor: int) -> None:
    """Whether x is `(B, channels, H, W)` with sides divisible by the factor."""
    if x.ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"image must be (B, {channels}, H, W), got {tuple(x.shape)}")
    height, width = x.shape[2:]
    if height % factor or width % factor or not height or not width:
        smaller = " x ".join(str(max(factor, side // factor * factor)) for side in (height, width))
        larger = " x ".join(str(max(factor, -(-side // factor) * factor)) for side in (height, width))
        raise ValueError(
            f"image size ({height} x {width}) must be divisible by {factor}: crop it to {smaller} or pad it to {larger}"
        )


def check_latents(z: torch.Tensor, channels: int) -> None:
    """Whether z is `(B, channels, h, w)`."""
    if z.ndim != 4 or z.shape[1] != channels:
        raise ValueError(f"latents must be (B, {channels}, h, w), got {tuple(z.shape)}")


def check_indices(indices: torch.Tensor, codebook_sizes: Sequence[int]) -> None:
    """Whether indices are `(B, G, h, w)` and each is in its codebook (values are not looked at while compiling)."""
    if indices.ndim != 4 or indices.shape[1] != len(codebook_sizes):
        raise ValueError(f"indices must be (B, {len(codebook_sizes)}, h, w), got {tuple(indices.shape)}")
    if torch.compiler.is_compiling():
        return
    sizes = torch.tensor(codebook_sizes, device=indices.device).view(-1, 1, 1)
    if bool(((indices < 0) | (indices >= sizes)).any()):
        raise ValueError(f"indices must be in [0, {max(codebook_sizes)}), got values outside: codes of another model?")


def check_quantize(quantize: bool | float, name: str = "quantize") -> None:
    """Whether `quantize` is True, False or a noise level."""
    if isinstance(quantize, bool):
        return
    if not isinstance(quantize, int | float) or not 0 < quantize < math.inf:
        raise ValueError(
            f"{name} ({quantize!r}) must be True (nearest codewords), False (latents as they are) or a positive number, "
            "the standard deviation of the noise on the latents (soft snapping)"
        )


def check_finite(images: torch.Tensor) -> torch.Tensor:
    """The decoded images, or ValueError if there is NaN or infinity among them: 8 bits would hide it."""
    if not images.isfinite().all():
        raise ValueError(
            f"the model gives images with values that are not finite in {images.dtype}: check its weights"
        )
    return images


def check_keys(name: str, given: dict | None, known: tuple[str, ...]) -> None:
    """Whether a mapping, or None, has no other keys than the known ones."""
    for key in given or {}:
        if key not in known:
            raise ValueError(f"{name} has the unknown key {key!r}: {did_you_mean(key, known)}")


def check_config(config) -> None:
    """Whether a configuration from a file is a mapping, and no number in it is too large."""
    if not isinstance(config, dict):
        raise ValueError(f"its config.json must hold a JSON object, holds a {type(config).__name__}")
    check_limits(config)


def refuse_wrong_values(init: Callable) -> Callable:
    """Decorator of a constructor that a configuration is given to: numbers that are too large are refused first, and a
    value of a wrong type, wherever that comes to light, is a ValueError too."""

    @functools.wraps(init)
    def checked(self, *args, **kwargs) -> None:
        given = inspect.signature(init).bind(self, *args, **kwargs)  # an unknown argument is a TypeError, as always
        given.apply_defaults()
        check_limits(given.arguments)
        try:
            init(self, *args, **kwargs)
        except (TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
            reason = one_line(error) or type(error).__name__
            raise ValueError(f"the configuration has a value of a wrong type or size ({reason[:200]})") from error

    return checked


# Far above every model that exists, and far below what fills the memory or takes for ever to build.
_LARGEST = {
    **dict.fromkeys(("block_out_channels", "channels", "mid_channels", "hidden_size", "in_channels"), 2**13),
    **dict.fromkeys(("latent_channels", "num_subspaces", "intermediate_size"), 2**16),
}
_REPEATED, _MOST_REPEATED = re.compile("layers|blocks|depth"), 128  # parts that a model has so many of
_LARGEST_NUMBER, _LONGEST, _MOST_LEVELS, _LARGEST_TABLE = 2**24, 2**16, 12, 2**29


def check_limits(config, name: str = "config") -> None:
    """Check the sizes in a configuration before anything is built from it.

    Raises:
        ValueError: naming the entry, if a number is so large, or a list so long, that no machine could build the model.
    """
    if isinstance(config, Mapping):
        for key, value in config.items():
            check_limits(value, str(key))
        quantizer = config.get("quantizer_config")
        codebook_size = quantizer.get("codebook_size") if isinstance(quantizer, Mapping) else None
        table = [config.get("latent_channels"), codebook_size]
        if all(isinstance(size, int) for size in table) and math.prod(table) > _LARGEST_TABLE:
            raise ValueError(
                f"latent_channels ({table[0]}) times codebook_size ({table[1]}) may be {_LARGEST_TABLE:,}"
            )
    elif isinstance(config, list | tuple):
        longest = _MOST_LEVELS if name == "block_out_channels" else _LONGEST
        if len(config) > longest:
            raise ValueError(f"{name} has {len(config):,} entries: at most {longest:,} are allowed")
        for value in config:
            check_limits(value, name)
    elif isinstance(config, int):
        largest = _MOST_REPEATED if _REPEATED.search(name) else _LARGEST.get(name, _LARGEST_NUMBER)
        if abs(config) > largest:
            raise ValueError(f"{name} ({str(config)[:30]}) may be at most {largest:,}")
