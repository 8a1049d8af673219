"""Painted pictures as a labelled grid, as files, as tables and as facts for JSON."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..data.files import atomic_file
from ..data.grid import grid_image
from .output import print_table

# Shipped pipelines in the order of the columns.
TITLES = {"tiny-base": "base", "tiny-precise": "Precise", "tiny-quick": "Quick", "tiny-hr": "HR"}

_SMALL = 256  # pixels: smaller pictures are enlarged whole times up to there
_LARGE = 512  # pixels: larger pictures are shrunk to there


@dataclass(frozen=True)
class Picture:
    """A painted picture.

    Attributes:
        seconds: that it took.
        wrong: attributes that it shows otherwise than the prompt says; None if nobody can tell.
    """

    prompt: str
    seed: int
    image: Image.Image
    seconds: float
    wrong: list[str] | None


@dataclass(frozen=True)
class ModelPictures:
    """Everything that a model painted: for each prompt in order, each seed in order.

    Attributes:
        name: as the user gave it.
        title: short, and different from those of the other models.
        latents: channels, height and width.
        guidance: scale of classifier-free guidance.
    """

    name: str
    title: str
    latents: tuple[int, int, int]
    guidance: float
    pictures: list[Picture]

    @property
    def seconds(self) -> float:
        """Per picture."""
        return sum(picture.seconds for picture in self.pictures) / len(self.pictures)

    @property
    def verdicts(self) -> list[bool]:
        """Whether each picture that can be checked is right."""
        return [not picture.wrong for picture in self.pictures if picture.wrong is not None]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pictures[0].image.size


def titles_of(names: list[str]) -> dict[str, str]:
    """Short titles of models, in full where they would be the same."""
    short = {name: TITLES.get(name, Path(name).name) for name in names}
    return {name: title if list(short.values()).count(title) == 1 else name for name, title in short.items()}


def grid(prompts: list[str], models: Sequence[ModelPictures], compare: bool) -> Image.Image:
    """Rows of prompts and columns of seeds; or, to compare, rows of prompts and seeds, and a column for each model."""
    longest = max(max(model.size) for model in models)
    side = min(longest, _LARGE) if longest > _SMALL else _SMALL // longest * longest
    labels = [" ".join(prompt.split()) for prompt in prompts]
    number = len(models[0].pictures) // len(prompts)
    if not compare:
        images = [picture.image for picture in models[0].pictures]
        rows = [(label, images[i * number : (i + 1) * number]) for i, label in enumerate(labels)]
        return grid_image(rows, [f"seed {picture.seed}" for picture in models[0].pictures[:number]], side)
    if number > 1:
        labels = [f"{label}, seed {picture.seed}" for label in labels for picture in models[0].pictures[:number]]
    rows = [(label, [model.pictures[i].image for model in models]) for i, label in enumerate(labels)]
    return grid_image(rows, [f"{model.title}\n{model.seconds:.2f} s" for model in models], side)


def write_pictures(
    output: Path, as_folder: bool, sheet: Image.Image, prompts: list[str], models: Sequence[ModelPictures]
) -> list[str]:
    """Write the grid, and if `output` is a folder also every picture; returns the files."""
    images = {output / "grid.png" if as_folder else output: sheet}
    if as_folder:
        number = len(models[0].pictures) // len(prompts)
        for model in models:
            middle = "." + re.sub(r"[^\w.-]+", "-", model.title) if len(models) > 1 else ""
            for i, picture in enumerate(model.pictures):
                words = "-".join(re.findall(r"\w+", picture.prompt))[:60].strip("-")
                images[output / f"{i // number + 1}-{words}{middle}.seed-{picture.seed}.png"] = picture.image
    for path, image in images.items():
        with atomic_file(path) as temporary:
            image.save(temporary)
    return [str(path) for path in images]


def facts_of(models: Sequence[ModelPictures]) -> dict:
    """What JSON says about models and pictures."""
    rows = [
        {
            "model": model.name,
            "width": model.size[0],
            "height": model.size[1],
            "latents": model.latents,
            "guidance": model.guidance,
            "seconds_per_picture": round(model.seconds, 4),
            "checked": len(model.verdicts),
            "right": sum(model.verdicts),
        }
        for model in models
    ]
    pictures = [
        {
            "prompt": picture.prompt,
            "model": model.name,
            "seed": picture.seed,
            "seconds": round(picture.seconds, 4),
            "right": None if picture.wrong is None else not picture.wrong,
            "wrong": picture.wrong,
        }
        for model in models
        for picture in model.pictures
    ]
    return {"models": rows, "pictures": pictures}


def print_report(prompts: list[str], models: Sequence[ModelPictures], how: str) -> None:
    """Tables on stdout: the models, and where pictures can be checked, which show what their prompt says."""
    checked = any(model.verdicts for model in models)
    rows = []
    for model in models:
        row = [model.title, " x ".join(map(str, model.size)), " x ".join(map(str, model.latents))]
        right = f"{sum(model.verdicts)} of {len(model.verdicts)}" if model.verdicts else "-"
        rows.append([*row, f"{model.seconds:.2f}", *[right] * checked])
    columns = ["model", "pixels", "latents", "seconds per picture", *["scenes right"] * checked]
    print_table(f"Pictures from prompts, {how}", columns, rows)
    if not checked:
        return
    number = len(models[0].pictures) // len(prompts)
    rows = []
    for i, prompt in enumerate(prompts):
        cells = [_verdict(model.pictures[i * number : (i + 1) * number]) for model in models]
        if any(cell != "-" for cell in cells):
            rows.append([prompt, *cells])
    print_table("Right, or what is wrong, read from the pixels", ["prompt", *(model.title for model in models)], rows)


def _verdict(pictures: list[Picture]) -> str:
    """A cell for pictures of one prompt by one model: `right`, or what is not."""
    if pictures[0].wrong is None:
        return "-"
    if len(pictures) > 1:
        return f"{sum(not picture.wrong for picture in pictures)} of {len(pictures)} right"
    wrong = pictures[0].wrong
    if "count" in wrong:  # with an object too few or too many, nothing else can be compared
        wrong = [name for name in wrong if name in ("count", "background")]
    return ", ".join(wrong) or "right"
