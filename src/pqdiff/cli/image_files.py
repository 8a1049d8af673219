"""Files that the commands on images write, and their names."""

import re
from pathlib import Path

from PIL import Image

from pqdiff.data.files import atomic_file
from pqdiff.data.images.colors import srgb_tag
from pqdiff.data.images.reading import find_images


def images_of(paths: list[Path]) -> list[Path]:
    """The paths, with all images of a folder, its subfolders included, in place of the folder.

    Raises:
        ValueError: for a folder without images.
    """
    return [image for path in paths for image in (find_images(path) if path.is_dir() else [path])]


def save_image(image: Image.Image, path: Path) -> str:
    """Write an image, which says that its colors are sRGB, and return its path. Folders on the way are made."""
    with atomic_file(path) as temporary:
        image.save(temporary, **srgb_tag(path.suffix))
    return str(path)


def generated_files(output: Path, as_folder: bool, prompts: list[str], titles: list[str], seeds: range) -> list[Path]:
    """Where the grid goes and, if `output` is a folder, each image: by title, prompt and seed."""
    if not as_folder:
        return [output]
    words = ["-".join(re.findall(r"\w+", prompt))[:60].strip("-") for prompt in prompts]
    middles = ["." + re.sub(r"[^\w.-]+", "-", title) for title in titles] if len(titles) > 1 else [""]
    words = [f"{i}-{word}" for i, word in enumerate(words, start=1)]
    names = [f"{word}{middle}.seed-{seed}" for middle in middles for word in words for seed in seeds]
    return [output / f"{name}.png" for name in ["grid", *unique_names(names)]]


def unique_names(names: list[str]) -> list[str]:
    """The names, with a number where one comes again, so that no result overwrites another."""
    result: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in result or (number > 1 and candidate in names):
            number += 1
            candidate = f"{name}-{number}"
        result.append(candidate)
    return result
