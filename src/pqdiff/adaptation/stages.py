"""Stages of a training run, as data: a resolution, a number of steps, a learning rate, and which weights learn."""

import dataclasses
from dataclasses import dataclass
from typing import Any

from pqdiff.suggestions import did_you_mean

TRAINABLE = ("projections", "all", "lora")


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        resolution: side of the images in pixels, at least 1.
        steps: optimizer steps, at least 1.
        learning_rate: of the optimizer, above 0.
        trainable: `projections` (the first and the last convolution of the UNet), `all` or `lora`.

    Raises:
        ValueError: naming the attribute, for a value that it cannot have.
    """

    resolution: int
    steps: int
    learning_rate: float
    trainable: str = "all"

    def __post_init__(self):
        check_positive_integers(self, "resolution", "steps")
        if self.resolution > 2**14 or self.steps > 10**9:
            raise ValueError(f"resolution ({self.resolution}) may be at most {2**14}, steps ({self.steps}) {10**9}")
        rate = self.learning_rate
        if not isinstance(rate, int | float) or isinstance(rate, bool) or not 0 < rate < float("inf"):
            raise ValueError(f"learning_rate ({rate!r}) must be a positive number")
        if self.trainable not in TRAINABLE:
            raise ValueError(f"trainable ({self.trainable!r}) must be one of {', '.join(TRAINABLE)}")


def read_stages(values: Any) -> tuple[Stage, ...]:
    """Stages from a list of mappings, as a variant's file or `--stages` holds them.

    Raises:
        ValueError: naming the stage by its number, the key, and what is wrong with it.
    """
    if not isinstance(values, list | tuple) or not values:
        raise ValueError(
            f"stages ({values!r}) must be a list of {{resolution, steps, learning_rate, trainable}}, at least one"
        )
    return tuple(read_mapping(Stage, value, f"stage {number}: ") for number, value in enumerate(values, start=1))


def read_mapping(kind: type, content: Any, where: str = "") -> Any:
    """Instance of a dataclass from a mapping that has the fields of the class as keys, all of them and no others.

    Args:
        kind: dataclass.
        content: the mapping.
        where: beginning of error messages.

    Raises:
        ValueError: naming the key and what is wrong with it.
    """
    keys = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(content, dict):
        raise ValueError(f"{where}expected the keys {', '.join(keys)}, got {content!r}")
    for key in content:
        if key not in keys:
            raise ValueError(f"{where}key {key!r} is unknown: {did_you_mean(key, keys)}")
    for key in keys:
        if key not in content:
            raise ValueError(f"{where}key {key!r} is missing")
    try:
        return kind(**content)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from None


def check_positive_integers(content: Any, *names: str) -> None:
    """Raise ValueError unless these attributes are integers of at least 1."""
    for name in names:
        value = getattr(content, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} ({value!r}) must be a positive integer")
