"""Labelled panels: the original beside each reconstruction, and below each reconstruction its error."""

import torch
from PIL import Image, ImageDraw, ImageFont

from pqdiff.data.images.grid import ERROR_GAIN, error_map
from pqdiff.data.images.reading import to_image

_GAP, _LINE = 8, 18


def panel(
    original: torch.Tensor, reconstructions: list[tuple[str, str, torch.Tensor]], side: int = 512
) -> Image.Image:
    """Original | each model, with an error map under each model.

    Args:
        original: uint8 pixels `(3, H, W)`.
        reconstructions: for each model its label, a line of numbers, and uint8 pixels like the original's.
        side: largest length of an image's longer side in pixels; small images are enlarged by a whole factor.
    """
    width, height = _cell_size(original, side)
    cell = max(width, 150)  # room for the labels
    columns = 1 + len(reconstructions)
    sheet = Image.new("RGB", (columns * (cell + _GAP) + _GAP, 2 * (height + _GAP) + 3 * _LINE + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    top, below = _GAP + 2 * _LINE, _GAP + 3 * _LINE + height + _GAP

    def label(column: int, y: int, text: str) -> int:
        x = _GAP + column * (cell + _GAP)
        draw.text((x, y), text, fill="black", font=font)
        return x

    x = label(0, _GAP, "original")
    label(0, _GAP + _LINE, f"{original.shape[2]} x {original.shape[1]}")
    sheet.paste(_fit(original, (width, height)), (x, top))
    label(0, below, f"error x {ERROR_GAIN}:")
    for column, (name, numbers, pixels) in enumerate(reconstructions, start=1):
        x = label(column, _GAP, name)
        label(column, _GAP + _LINE, numbers)
        sheet.paste(_fit(pixels, (width, height)), (x, top))
        sheet.paste(_fit(error_map(original, pixels), (width, height)), (x, below))
    return sheet


def _cell_size(pixels: torch.Tensor, side: int) -> tuple[int, int]:
    height, width = pixels.shape[1:]
    longer = max(height, width)
    scale = side / longer if longer > side else max(1, side // 2 // longer)
    return max(1, round(width * scale)), max(1, round(height * scale))


def _fit(pixels: torch.Tensor, size: tuple[int, int]) -> Image.Image:
    shrinks = pixels.shape[2] > size[0]
    return to_image(pixels).resize(size, Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST)
