"""Sheets that show images to people: labelled grids, and maps of where two images differ."""

from collections.abc import Sequence

import torch
from PIL import Image, ImageDraw, ImageFont

ERROR_GAIN = 4  # factor by which an error map makes errors brighter
_GAP, _LINE = 6, 16  # pixels between images; height of a line of text
_NARROWEST = 360  # pixels; a label is wrapped to the width of the sheet, or to this width if the sheet is narrower


def grid_image(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), side: int = 192
) -> Image.Image:
    """A sheet with a label above every row of images, and titles above the columns.

    Args:
        rows: label and images of each row.
        columns: titles of the columns, or none. A title may have several lines; what does not fit a column is cut off.
        side: longer side of an image on the sheet in pixels; small images are enlarged without smoothing.
    """
    font = ImageFont.load_default(12)
    width = max(len(images) for _, images in rows)
    title_lines = max((title.count("\n") + 1 for title in columns), default=0)
    sheet_width = max(_GAP + width * (side + _GAP), _NARROWEST)
    labels = [_wrap(label, font, sheet_width - 2 * _GAP) for label, _ in rows]
    top = _GAP + title_lines * _LINE
    row_heights = [len(lines) * _LINE + side + _GAP for lines in labels]
    sheet = Image.new("RGB", (sheet_width, top + sum(row_heights)), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        for line, text in enumerate(title.split("\n")):
            place = _GAP + column * (side + _GAP), _GAP // 2 + line * _LINE
            draw.text(place, _cut(text, font, side), fill="black", font=font)
    y = top
    for lines, (_, images), row_height in zip(labels, rows, row_heights, strict=True):
        for number, line in enumerate(lines):
            draw.text((_GAP, y + number * _LINE), line, fill="black", font=font)
        below = y + len(lines) * _LINE
        for column, image in enumerate(images):
            scale = side / max(image.size)
            size = tuple(max(1, round(length * scale)) for length in image.size)
            method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            sheet.paste(image.convert("RGB").resize(size, method), (_GAP + column * (side + _GAP), below))
        y += row_height
    return sheet


def error_map(original: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Absolute difference of two images, times `ERROR_GAIN`, clamped to 255: black where they are equal.

    Args:
        original: uint8 pixels of any shape.
        image: uint8 pixels of the same shape.

    Returns:
        uint8 pixels of that shape.
    """
    return (original.int() - image.int()).abs().mul(ERROR_GAIN).clamp(max=255).to(torch.uint8)


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Lines of at most `width` pixels; a word that is longer is cut off."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(_cut(word, font, width))
    return lines or [""]


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    text = text[:width]  # every letter is wider than a pixel
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
