"""What several tests of benchmarks need."""

from pathlib import Path

import torch

from pqdiff.data.images.reading import to_image


def save_images(images: list[torch.Tensor], folder: Path) -> None:
    """Write uint8 images `(3, H, W)` as PNG files 00.png, 01.png, ... to a new folder."""
    folder.mkdir()
    for number, image in enumerate(images):
        to_image(image).save(folder / f"{number:02d}.png")
