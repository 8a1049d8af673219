"""Generated images as a labelled grid, as files and as tables."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from pqdiff.cli.generated_images import GeneratedImage, ImagesOfModel
from pqdiff.cli.image_files import save_image
from pqdiff.cli.output import print_table
from pqdiff.data.images.grid import grid_image

_SMALL = 256  # pixels: smaller images are enlarged by a whole factor, up to this size
_LARGE = 512  # pixels: larger images are shrunk to this size


def grid(prompts: list[str], models: Sequence[ImagesOfModel], compare: bool) -> Image.Image:
    """A sheet with a row for each prompt and a column for each seed.

    To compare models, it has a row for each prompt and seed instead, and a column for each model.
    """
    longest = max(max(model.size) for model in models)
    side = min(longest, _LARGE) if longest > _SMALL else _SMALL // longest * longest
    labels = [" ".join(prompt.split()) for prompt in prompts]
    number = len(models[0].images) // len(prompts)
    if not compare:
        images = [image.image for image in models[0].images]
        rows = [(label, images[i * number : (i + 1) * number]) for i, label in enumerate(labels)]
        return grid_image(rows, [f"seed {image.seed}" for image in models[0].images[:number]], side)
    if number > 1:
        labels = [f"{label}, seed {image.seed}" for label in labels for image in models[0].images[:number]]
    rows = [(label, [model.images[i].image for model in models]) for i, label in enumerate(labels)]
    return grid_image(rows, [f"{model.title}\n{model.seconds:.2f} s" for model in models], side)


def write_images(files: Sequence[Path], sheet: Image.Image, models: Sequence[ImagesOfModel]) -> list[str]:
    """Write the grid, and every single image where there is a file for it; returns the paths."""
    images = [sheet, *(image.image for model in models for image in model.images)]
    return [save_image(image, path) for path, image in zip(files, images, strict=False)]


def print_report(prompts: list[str], models: Sequence[ImagesOfModel], how: str) -> None:
    """Print a table of the models, and where images can be checked, a table of which ones show what the prompt says."""
    checked = any(model.verdicts for model in models)
    rows = []
    for model in models:
        row = [model.title, " x ".join(map(str, model.size)), " x ".join(map(str, model.latents))]
        right = f"{sum(model.verdicts)} of {len(model.verdicts)}" if model.verdicts else "-"
        rows.append([*row, f"{model.seconds:.2f}", *[right] * checked])
    columns = ["model", "pixels", "latents", "seconds per image", *["scenes right"] * checked]
    print_table(f"Generated images, {how}", columns, rows)
    if not checked:
        return
    number = len(models[0].images) // len(prompts)
    rows = []
    for i, prompt in enumerate(prompts):
        cells = [_verdict(model.images[i * number : (i + 1) * number]) for model in models]
        if any(cell != "-" for cell in cells):
            rows.append([prompt, *cells])
    print_table("What is wrong, as measured in the pixels", ["prompt", *(model.title for model in models)], rows)


def _verdict(images: list[GeneratedImage]) -> str:
    """The cell for the images of one prompt by one model: `right`, or what is wrong."""
    if images[0].wrong is None:
        return "-"
    if len(images) > 1:
        return f"{sum(not image.wrong for image in images)} of {len(images)} right"
    wrong = images[0].wrong
    if "count" in wrong:  # with an object too few or too many, no object can be compared with its description
        wrong = [name for name in wrong if name in ("count", "background")]
    return ", ".join(wrong) or "right"
