"""Files that the commands on images write, and their names."""

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
