"""The variants of a model, as data: which autoencoder, which size, and the stages of training that lead there.

HR, Precise and Quick are the paper's; a YAML file with the same keys makes another.
"""

import contextlib
import dataclasses
import difflib
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import yaml

from ..models.presets import preset_config

_FOLDER = Path(__file__).parent / "variants"

VARIANTS = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))
TRAINABLE = ("projections", "all", "lora")


@dataclass(frozen=True)
class Stage:
    """A stretch of training.

    Attributes:
        resolution: side of the images in pixels.
        steps: updates of the weights.
        learning_rate: of the optimizer.
        trainable: `projections` (the first and last convolution of the UNet), `all` or `lora`.
    """

    resolution: int
    steps: int
    learning_rate: float
    trainable: str

    def __post_init__(self):
        _check_integers(self, "resolution", "steps")
        rate = self.learning_rate
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < float("inf"):
            raise ValueError(f"learning_rate ({rate!r}) must be a positive number")
        if self.trainable not in TRAINABLE:
            raise ValueError(f"trainable ({self.trainable!r}) must be one of {', '.join(TRAINABLE)}")


@dataclass(frozen=True)
class Variant:
    """What a model is made of and how it is trained.

    Attributes:
        name: of the variant.
        base: Hub id or folder of the Stable Diffusion that is adapted.
        autoencoder: preset of the autoencoder, which gives F and the latent channels.
        sample_size: side of the latents.
        resolution: side of the pictures in pixels, F times that.
        batch_size: images per update, over all processes.
        stages: of training, in order.
    """

    name: str
    base: str
    autoencoder: str
    sample_size: int
    resolution: int
    batch_size: int
    stages: tuple[Stage, ...]

    def __post_init__(self):
        for key in ("name", "base", "autoencoder"):
            if not isinstance(getattr(self, key), str) or not getattr(self, key):
                raise ValueError(f"{key} ({getattr(self, key)!r}) must be a text")
        try:
            preset_config(self.autoencoder)
        except ValueError as error:
            raise ValueError(f"autoencoder: {error}") from None
        _check_integers(self, "sample_size", "resolution", "batch_size")
        factor = self.downsample_factor
        if self.sample_size * factor != self.resolution:
            raise ValueError(
                f"resolution ({self.resolution}) must be sample_size ({self.sample_size}) times F = {factor} of "
                f"{self.autoencoder}: {self.sample_size * factor}"
            )
        if not self.stages:
            raise ValueError("stages is empty: give at least one")
        for stage in self.stages:
            if stage.resolution % factor:
                raise ValueError(
                    f"resolution ({stage.resolution}) of a stage must be divisible by F = {factor} of {self.autoencoder}"
                )

    @property
    def downsample_factor(self) -> int:
        """F of the autoencoder."""
        return 2 ** (len(preset_config(self.autoencoder)["block_out_channels"]) - 1)

    @property
    def latent_channels(self) -> int:
        """d of the autoencoder."""
        return preset_config(self.autoencoder)["latent_channels"]


def load_variant(source: str | PathLike) -> Variant:
    """Read a variant by its name (`hr`, `precise`, `quick`) or from a YAML file.

    Raises:
        ValueError: naming the file, the key and what is wrong with it.
    """
    path = _FOLDER / f"{source}.yaml" if source in VARIANTS else Path(source)
    if not path.is_file():
        raise ValueError(f"variant ({str(source)!r}) is neither known nor a file: {_hint(str(source), VARIANTS)}")
    try:
        content = yaml.safe_load(path.read_text())
        stages = content.get("stages") if isinstance(content, dict) else None
        if isinstance(stages, list):
            content["stages"] = read_stages(stages)
        elif stages is not None:
            raise ValueError(f"stages ({stages!r}) must be a list")
        return _read(Variant, content, "")
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None


def read_stages(values: list) -> tuple[Stage, ...]:
    """Stages made of mappings.

    Raises:
        ValueError: naming the stage by its number, the key and what is wrong with it.
    """
    return tuple(_read(Stage, value, f"stage {number}: ") for number, value in enumerate(values, start=1))


def _read(kind: type, content: Any, where: str) -> Any:
    """A dataclass made of a mapping that must have its keys and no others."""
    keys = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(content, dict):
        raise ValueError(f"{where}expected the keys {', '.join(keys)}, got {content!r}")
    for key in content:
        if key not in keys:
            raise ValueError(f"{where}key {key!r} is unknown: {_hint(str(key), keys)}")
    for key in keys:
        if key not in content:
            raise ValueError(f"{where}key {key!r} is missing")
    if isinstance(content.get("learning_rate"), str):  # YAML 1.1 takes 8e-5, without a point, for a text
        with contextlib.suppress(ValueError):
            content = {**content, "learning_rate": float(content["learning_rate"])}
    try:
        return kind(**content)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def _check_integers(content: Stage | Variant, *keys: str) -> None:
    for key in keys:
        value = getattr(content, key)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{key} ({value!r}) must be a positive integer")


def _hint(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = difflib.get_close_matches(str(word), known, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(known)}"
