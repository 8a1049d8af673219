"""The contract of transforms: images to what a quantizer codes, and codes to images."""

import inspect
from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import nn

from pqdiff.suggestions import did_you_mean

TRANSFORMS: dict[str, type["Transform"]] = {}


class Transform(nn.Module, ABC):
    """Base of all transforms. Images are `(B, C, H, W)` in [-1, 1] with sides divisible by F.

    A constructor takes `in_channels` (C), `z_channels` (what analysis gives) and `code_channels` (what synthesis takes),
    then JSON values only: they are the `transform_config` of a saved autoencoder.

    Attributes:
        block_out_channels: widths of the levels; F = 2 ** (their number - 1). Stock pipelines read F from this.
        reach: neighbors to each side that a position of z, or a pixel, depends on, in positions; None if that is
            everything, as with normalization over the image. Tiles of a transform with a reach join exactly.
        last_layer: weights that make the image, at which the adversarial loss is balanced.
    """

    block_out_channels: tuple[int, ...]
    reach: int | None = None

    @property
    def downsample_factor(self) -> int:
        """F: pixels per side of a position."""
        return 2 ** (len(self.block_out_channels) - 1)

    @property
    @abstractmethod
    def last_layer(self) -> nn.Parameter:
        """See the class."""

    @abstractmethod
    def group_of(self, name: str) -> str:
        """`encoder`, `decoder` or `linear`: the group whose learning rate the parameter `name` of this module has."""

    def silence(self) -> None:
        """Make analysis and synthesis give 0, so that training beside another transform begins with what that one does.

        Raises:
            ValueError: if the transform cannot be silent and learn.
        """
        raise ValueError(f"{type(self).__name__} cannot begin silent beside another transform")

    def positions_that_see(self, pixels: torch.Tensor) -> torch.Tensor:
        """bool `(B, 1, H/F, W/F)`: the positions whose z may depend on a marked pixel, bool `(B, H, W)`."""
        factor = self.downsample_factor
        patches = pixels.unflatten(2, (-1, factor)).unflatten(1, (-1, factor))  # (B, H/F, F, W/F, F)
        positions = patches.any(dim=4).any(dim=2)[:, None]
        if self.reach is None:
            return positions.any(dim=(2, 3), keepdim=True).expand_as(positions)
        return F.max_pool2d(positions.float(), 2 * self.reach + 1, stride=1, padding=self.reach) > 0

    @abstractmethod
    def analysis(self, image: torch.Tensor) -> torch.Tensor:
        """z `(B, z_channels, H/F, W/F)` of images `(B, C, H, W)`."""

    @abstractmethod
    def synthesis(self, codes: torch.Tensor) -> torch.Tensor:
        """Images `(B, C, F h, F w)` of codes `(B, code_channels, h, w)`, nominally in [-1, 1], not clamped."""


def register_transform(name: str):
    """Class decorator: make a transform known as `name` to `build_transform` and `AutoencoderPQ`."""

    def register(cls: type[Transform]) -> type[Transform]:
        TRANSFORMS[name] = cls
        return cls

    return register


def build_transform(
    name: str, in_channels: int, z_channels: int, code_channels: int, config: dict | None = None
) -> Transform:
    """The registered transform `name`.

    Raises:
        ValueError: for a name or a key of `config` that does not exist (with the nearest that does), and for values
            that the transform refuses.
    """
    if name not in TRANSFORMS:
        raise ValueError(f"transform_type ({name!r}) is not registered: {did_you_mean(name, TRANSFORMS)}")
    config = dict(config or {})
    allowed = list(inspect.signature(TRANSFORMS[name].__init__).parameters)[4:]  # without self and channels
    for key in config:
        if key not in allowed:
            raise ValueError(
                f"transform_config has the unknown key {key!r} for {name!r}: {did_you_mean(key, allowed)}"
            )
    return TRANSFORMS[name](in_channels, z_channels, code_channels, **config)
