"""Resize and crop images: the one implementation behind metrics, training samples and latent caches.

Two steps are common: an image is resized until it just covers the target size (`resize_to_cover`), then a rectangle of
that size is cut out (`resize_and_crop`). `crop_and_resize` works the other way round and so shows a part of the image.
`plan_crops` decides on rectangles from sizes and a seed alone, so that a cache can record them; `cut` cuts them.
All resizing is by Pillow's Lanczos filter.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

Place = tuple[float, float]  # of a rectangle: (0, 0) is the top left corner, (1, 1) the bottom right corner


def covering_size(size: tuple[int, int], target: int | tuple[int, int]) -> tuple[int, int]:
    """Smallest size at the same aspect ratio that covers a target.

    Args:
        size: (width, height) of an image.
        target: (height, width), or the side of a square.

    Returns:
        (width, height), rounded to whole pixels; one of them is equal to the target's.
    """
    (width, height), (target_height, target_width) = size, _sides(target)
    scale = max(target_width / width, target_height / height)
    return max(target_width, round(width * scale)), max(target_height, round(height * scale))


def resize_to_cover(image: Image.Image, target: int | tuple[int, int]) -> Image.Image:
    """The whole image, resized to just cover `target`: (height, width), or the length of its shorter side."""
    return image.resize(covering_size(image.size, target), Image.Resampling.LANCZOS)


def resize_and_crop(image: Image.Image, target: int | tuple[int, int], place: Place | None = None) -> Image.Image:
    """The image resized to just cover `target`, then cropped to it.

    Args:
        image: any image.
        target: (height, width) of the result, or the side of a square.
        place: where to crop, as fractions of the room that there is, rounded to whole pixels; None is the center, half
            pixels rounded down, as the metrics do it. `(0.5, 0.5)` rounds half pixels to even numbers.
    """
    height, width = _sides(target)
    resized = resize_to_cover(image, target)
    left, top = _corner(resized.width - width, resized.height - height, place)
    return resized.crop((left, top, left + width, top + height))


def crop_and_resize(image: Image.Image, side: int, resolution: int, place: Place) -> Image.Image:
    """A square of `side` pixels of the image, cut at `place`, then resized to sides of `resolution` pixels.

    Pixels stay as they are where `side` is equal to `resolution`.

    Raises:
        ValueError: if the square is larger than the image.
    """
    if not 1 <= side <= min(image.size):
        raise ValueError(f"side ({side}) must be between 1 and {min(image.size)}, the shorter side of the image")
    left, top = _corner(image.width - side, image.height - side, place)
    box = (left, top, left + side, top + side)
    if side == resolution:
        return image.crop(box)
    return image.resize((resolution, resolution), Image.Resampling.LANCZOS, box=box)


@dataclass(frozen=True)
class Crop:
    """A rectangle of a resized image, in pixels.

    Attributes:
        left, top: its corner in the resized image.
        width, height: its sides.
        resized_width, resized_height: sides of the resized image.
        original_width, original_height: sides of the image before resizing.
        flip: 1 if it is mirrored after cutting, so that left becomes right; else 0.
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
    """Crops of an image that is resized to just cover the target: first the center, then random places.

    Args:
        size: (width, height) of the image.
        target: (height, width) of the crops.
        count: number of crops.
        flip: whether each crop is followed by its mirror image.
        seed: number, or numbers, that decide the random places.

    Raises:
        ValueError: if `count` is not positive.
    """
    if count < 1:
        raise ValueError(f"count ({count}) of crops must be at least 1")
    height, width = target
    resized = covering_size(size, target)
    room = np.array([resized[0] - width, resized[1] - height])
    corners = [_corner(*room, None), *np.random.default_rng(seed).integers(0, room + 1, (count - 1, 2))]
    return [
        Crop(int(left), int(top), width, height, *resized, *size, mirrored)
        for left, top in corners
        for mirrored in range(1 + flip)
    ]


def cut(image: Image.Image, crops: list[Crop]) -> list[Image.Image]:
    """The crops of one image. It is resized once: all crops must have the same resized size."""
    resized = image.resize((crops[0].resized_width, crops[0].resized_height), Image.Resampling.LANCZOS)
    parts = [resized.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height)) for crop in crops]
    return [ImageOps.mirror(part) if crop.flip else part for part, crop in zip(parts, crops, strict=True)]


def _sides(target: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of a target size."""
    return (target, target) if isinstance(target, int) else target


def _corner(width: int, height: int, place: Place | None) -> tuple[int, int]:
    """(left, top) of a rectangle that has `width` and `height` pixels of room."""
    if place is None:
        return width // 2, height // 2
    return round(width * place[0]), round(height * place[1])
