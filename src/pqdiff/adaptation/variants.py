"""Variants of a model, as data: the autoencoder, the size, and the stages of training.

`hr`, `precise` and `quick` are the variants of the paper. A YAML file with the same keys makes another one.
"""

from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from pqdiff.adaptation.stages import Stage, check_positive_integers, read_mapping, read_stages
from pqdiff.models.presets import preset_config, preset_factor
from pqdiff.suggestions import did_you_mean
from pqdiff.yaml_text import read_yaml

_FOLDER = Path(__file__).parent / "recipes"

VARIANTS = tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


@dataclass(frozen=True)
class Variant:
    """What an adapted model is made of and how it is trained.

    Attributes:
        name: name of the variant.
        base: Hub id or folder of the Stable Diffusion that is adapted.
        autoencoder: preset of the autoencoder, which gives F and the latent channels.
        sample_size: side of the latents.
        resolution: side of the images in pixels: F times `sample_size`.
        batch_size: images per optimizer step, of all processes together.
        stages: stages of training, in order, at least one.

    Raises:
        ValueError: naming the attribute, for a value that it cannot have.
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
        check_positive_integers(self, "sample_size", "resolution", "batch_size")
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
        """Pixels per latent position along each side (F) of the autoencoder."""
        return preset_factor(self.autoencoder)

    @property
    def latent_channels(self) -> int:
        """Number of channels (d) of the autoencoder's latents."""
        return preset_config(self.autoencoder)["latent_channels"]


def load_variant(source: str | PathLike) -> Variant:
    """Read a variant by its name (`hr`, `precise`, `quick`) or from a YAML file.

    Raises:
        ValueError: naming the file, the key, and what is wrong with it.
    """
    path = _FOLDER / f"{source}.yaml" if source in VARIANTS else Path(source)
    if not path.is_file():
        raise ValueError(
            f"variant ({str(source)!r}) is neither a known name nor a file: {did_you_mean(str(source), VARIANTS)}"
        )
    content = read_yaml(path)
    try:
        if isinstance(content, dict) and "stages" in content:
            content["stages"] = read_stages(content["stages"])
        return read_mapping(Variant, content)
    except ValueError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
