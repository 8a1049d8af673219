"""Which part of a photo a training sample shows: planned from sizes and a seed alone, then cut."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps


@dataclass(frozen=True)
class Crop:
    """A rectangle of a resized photo, in pixels.

    Attributes:
        left, top: its corner in the resized photo.
        width, height: its sides.
        resized_width, resized_height: sides of the resized photo.
        original_width, original_height: sides of the photo before.
        flip: 1 if it is mirrored after cutting, so that left is right; else 0.
    """

    left: int
    top: int
    width: int
    height: int
    resized_width: int
    resized_height: int
    original_width: int
    original_height: int
    flip: int = 0


def plan_crops(
    size: tuple[int, int], target: tuple[int, int], count: int = 1, flip: bool = False, seed: int | list[int] = 0
) -> list[Crop]:
    """Crops of a photo that is resized to just cover the target: the one in the center, then random ones.

    Args:
        size: (width, height) of the photo.
        target: (height, width) of the crops.
        count: number of crops.
        flip: whether each crop is followed by its mirror image.
        seed: number, or numbers, that decide the random positions.

    Raises:
        ValueError: if `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count ({count}) of crops must be at least 1")
    (width, height), (target_height, target_width) = size, target
    scale = max(target_width / width, target_height / height)
    resized = max(target_width, round(width * scale)), max(target_height, round(height * scale))
    slack = np.array([resized[0] - target_width, resized[1] - target_height])
    corners = [slack // 2, *np.random.default_rng(seed).integers(0, slack + 1, (count - 1, 2))]
    return [
        Crop(int(left), int(top), target_width, target_height, *resized, width, height, mirrored)
        for left, top in corners
        for mirrored in range(1 + flip)
    ]


def cut(image: Image.Image, crops: list[Crop]) -> list[Image.Image]:
    """The crops of one photo, which share one resized size: resized once by Lanczos, cut, mirrored."""
    resized = image.resize((crops[0].resized_width, crops[0].resized_height), Image.Resampling.LANCZOS)
    parts = [resized.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)) for crop in crops]
    return [ImageOps.mirror(part) if crop.flip else part for part, crop in zip(parts, crops, strict=True)]
