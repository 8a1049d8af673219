"""Generated images with what is known of them, and the same as facts for JSON."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from pqdiff.cli.generation_settings import TITLES


@dataclass(frozen=True)
class GeneratedImage:
    """An image that a model has generated.

    Attributes:
        seconds: how long it took.
        wrong: the attributes in which the image differs from the prompt; None if that cannot be checked.
    """

    prompt: str
    seed: int
    image: Image.Image
    seconds: float
    wrong: list[str] | None


@dataclass(frozen=True)
class ImagesOfModel:
    """All images of one model: for each prompt in order, each seed in order.

    Attributes:
        name: as the user gave it.
        title: a short name that no other model has.
        latents: channels, height and width of the latents.
        guidance: scale of classifier-free guidance.
    """

    name: str
    title: str
    latents: tuple[int, int, int]
    guidance: float
    images: list[GeneratedImage]

    @property
    def seconds(self) -> float:
        """Mean time for an image."""
        return sum(image.seconds for image in self.images) / len(self.images)

    @property
    def verdicts(self) -> list[bool]:
        """Of each image that can be checked, whether it shows what its prompt says."""
        return [not image.wrong for image in self.images if image.wrong is not None]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images in pixels."""
        return self.images[0].image.size


def titles_of(names: list[str]) -> dict[str, str]:
    """A short title for each name of a model. Models whose short titles are equal keep their full names."""
    short = {name: TITLES.get(name, Path(name).name) for name in names}
    return {name: title if list(short.values()).count(title) == 1 else name for name, title in short.items()}


def facts_of(models: Sequence[ImagesOfModel]) -> dict:
    """What `--json` prints about models and images."""
    rows = [
        {
            "model": model.name,
            "width": model.size[0],
            "height": model.size[1],
            "latents": model.latents,
            "guidance": model.guidance,
            "seconds_per_image": round(model.seconds, 4),
            "checked": len(model.verdicts),
            "right": sum(model.verdicts),
        }
        for model in models
    ]
    images = [
        {
            "prompt": image.prompt,
            "model": model.name,
            "seed": image.seed,
            "seconds": round(image.seconds, 4),
            "right": None if image.wrong is None else not image.wrong,
            "wrong": image.wrong,
        }
        for model in models
        for image in model.images
    ]
    return {"models": rows, "images": images}
