"""Labelled grids of pictures."""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

_GAP, _LINE = 6, 16


def grid_image(
    rows: Sequence[tuple[str, Sequence[Image.Image]]], columns: Sequence[str] = (), side: int = 192
) -> Image.Image:
    """A sheet with a line of text above every row of pictures, and titles above the columns.

    Args:
        rows: label and pictures of each row.
        columns: titles of the columns, or none. A title may have several lines.
        side: longer side of a picture on the sheet; small pictures are enlarged without smoothing.
    """
    font = ImageFont.load_default(12)
    width = max(len(pictures) for _, pictures in rows)
    title_lines = max((title.count("\n") + 1 for title in columns), default=0)
    label_width = max(round(font.getlength(label)) for label, _ in rows)
    sheet_width = max(_GAP + width * (side + _GAP), label_width + 2 * _GAP)
    top = _GAP + title_lines * _LINE
    row_height = _LINE + side + _GAP
    sheet = Image.new("RGB", (sheet_width, top + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for column, title in enumerate(columns):
        draw.multiline_text((_GAP + column * (side + _GAP), _GAP // 2), title, fill="black", font=font)
    for row, (label, pictures) in enumerate(rows):
        y = top + row * row_height
        draw.text((_GAP, y), label, fill="black", font=font)
        for column, picture in enumerate(pictures):
            scale = side / max(picture.size)
            size = tuple(max(1, round(length * scale)) for length in picture.size)
            method = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS
            sheet.paste(picture.convert("RGB").resize(size, method), (_GAP + column * (side + _GAP), y + _LINE))
    return sheet
