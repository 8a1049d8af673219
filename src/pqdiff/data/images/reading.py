"""Find image files, read images of any kind as 8-bit RGB, and turn them into tensors and back."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from pqdiff.data.images.colors import join_bytes, to_rgb
from pqdiff.data.images.opening import IMAGE_SUFFIXES, one_line_errors, open_image, open_low_bytes


def load_image(path: str | Path) -> Image.Image:
    """An image file as an upright 8-bit RGB image.

    The EXIF orientation is applied, colors are converted to sRGB, transparency is laid over white, and 16 bits are
    rounded to 8 bits.

    Raises:
        ValueError: naming the file, if it is missing, empty, corrupt, truncated, too large, or of none of `FORMATS`.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder, not an image' if path.is_dir() else 'no such file'}")
    # Not by name: Pillow maps such files into memory, and TIFFs that it has to turn come out scrambled.
    with one_line_errors(str(path)), path.open("rb") as file:
        return decode_image(file)


def decode_image(file: BinaryIO) -> Image.Image:
    """An open image file as an upright 8-bit RGB image; raises what Pillow raises."""
    with open_image(file) as image:
        image.load()
        if lower := open_low_bytes(file):
            lower.load()
            return to_rgb(join_bytes(image, lower))
        return to_rgb(image)


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image as a uint8 tensor `(3, H, W)`."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def to_image(pixels: torch.Tensor) -> Image.Image:
    """uint8 tensor `(3, H, W)` as an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels of any shape to fp32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] of any shape and float type to uint8 pixels: rounded, and clamped where they are outside."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def pad_to_multiple(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Extend images `(B, C, H, W)` at the bottom and right by repeating their edge, to sides divisible by `factor`."""
    height, width = images.shape[2:]
    padding = (0, -width % factor, 0, -height % factor)
    return F.pad(images, padding, mode="replicate") if any(padding) else images


def find_images(folder: str | Path) -> list[Path]:
    """Image files in a folder and its subfolders, in name order. Links are followed; what is hidden is left out.

    Raises:
        ValueError: if the folder does not exist or holds no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    paths = sorted(filter(_is_image, walk(folder)))
    if not paths:
        raise ValueError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def holds_images(folder: str | Path) -> bool:
    """Whether there is an image file in a folder or its subfolders; stops at the first one."""
    return any(map(_is_image, walk(Path(folder))))


def walk(folder: Path) -> Iterator[Path]:
    """Files in a folder and its subfolders, without hidden ones. Links are followed, but each folder is read once."""
    seen = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(name)
        if (status.st_dev, status.st_ino) in seen:  # by another link, or because a link leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(part for part in folders if not part.startswith("."))
        yield from (Path(name, file) for file in sorted(files) if not file.startswith("."))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()
