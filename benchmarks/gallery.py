"""The paper's figures 1 and 7 from any photos, through any autoencoders and codecs.

    python -m benchmarks.gallery photo.jpg photos/ --codecs --output runs/gallery

writes `NAME.sides.png` for each photo (a row per side: the crop through each model, numbers, and a zoomed detail below) and
`details.png` (the detail of each photo at its largest side, with error maps). The numbers are of the whole crop: bits per
pixel, PSNR, SSIM, SSIMULACRA2; under an error map there is the PSNR of the detail alone. The figures in docs/ show
photos of scikit-image (`SKIMAGE` stands for the folder of its `skimage.data`):

    python -m benchmarks.gallery SKIMAGE/astronaut.png SKIMAGE/coffee.png SKIMAGE/chelsea.png \\
        --sides 256 384 512 --cell 128 \\
        --models pqgan-f16-d128-s64-k128-adaptive jpeg@1.75bpp pqgan-f32-d256-s64-k256-adaptive avif@0.5bpp \\
        --output runs/gallery
    cp runs/gallery/astronaut.sides.png docs/gallery.png
    cp runs/gallery/details.png docs/gallery_details.png

A photo is scaled until it just covers a side, and its center is cut out. Sides that are larger than a photo are left out of
its figures, and named. On sides above 1024 pixels, models work in tiles where they can.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

from pqdiff.checkpoints import BEST_AT_EACH_RATE
from pqdiff.cli.image_files import images_of, save_image, unique_names
from pqdiff.data.files import check_new_file
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.grid import ERROR_GAIN, error_map
from pqdiff.data.images.reading import load_image, to_image, to_tensor
from pqdiff.metrics import ImagePSNR, ImageSSIM
from pqdiff.metrics.evaluation import check_resolution
from pqdiff.metrics.reconstructors import AutoencoderReconstructor, CodecReconstructor, build_reconstructor
from pqdiff.metrics.ssimulacra2 import ssimulacra2
from pqdiff.models.autoencoder_pq import AutoencoderPQ

_TILE_SIDE = 1024  # pixels
_GAP, _LINE = 8, 16  # pixels between cells; height of a line of text
_LEAST_CELL = 128  # pixels: a line of numbers fits
_ZOOM = 1 / 8  # side of a detail as a part of the crop's


class Zoom(NamedTuple):
    """A square of a crop, as fractions of the crop's side: its top left corner and its side."""

    x: float
    y: float
    size: float

    def box(self, side: int) -> tuple[int, int, int]:
        """(left, top, side) in a crop of `side` pixels; at least one pixel, inside the crop."""
        size = max(1, round(self.size * side))
        return min(round(self.x * side), side - size), min(round(self.y * side), side - size), size

    def cut(self, pixels: torch.Tensor) -> torch.Tensor:
        """The square of pixels `(..., H, W)`, H equal to W."""
        left, top, size = self.box(pixels.shape[-1])
        return pixels[..., top : top + size, left : left + size]


class Column(NamedTuple):
    """A crop through one model.

    Attributes:
        name: of the model.
        pixels: uint8 `(3, side, side)`.
        numbers: `bits_per_pixel` (None where there are neither tokens nor files), `psnr`, `ssim`, `ssimulacra2`; empty for
            the original.
    """

    name: str
    pixels: torch.Tensor
    numbers: dict[str, float | None]

    def lines(self) -> list[str]:
        """What stands below the crop."""
        if not self.numbers:
            return [f"{self.pixels.shape[2]} x {self.pixels.shape[1]}"]
        rate = self.numbers["bits_per_pixel"]
        return [
            f"{'-' if rate is None else format(rate, '.2f')} bpp, {self.numbers['psnr']:.2f} dB",
            f"SSIM {self.numbers['ssim']:.4f}",
            f"SSIMULACRA2 {self.numbers['ssimulacra2']:.1f}",
        ]


class Cell(NamedTuple):
    """An image on a sheet, and the lines below it."""

    image: Image.Image
    lines: Sequence[str] = ()


def columns_at(
    side: int, image: Image.Image, models: dict[str, AutoencoderReconstructor | CodecReconstructor]
) -> list[Column]:
    """The crop of a photo at one side: the original, then each model."""
    original = to_tensor(resize_and_crop(image, side))
    columns = [Column("original", original, {})]
    for name, reconstructor in models.items():
        model = getattr(reconstructor, "model", None)
        if hasattr(model, "use_tiling"):
            model.use_tiling = side > _TILE_SIDE
        result = reconstructor(original[None])
        rate = model.bits_per_pixel if isinstance(model, AutoencoderPQ) else None
        numbers = {"bits_per_pixel": rate if result.num_bytes is None else 8 * result.num_bytes / side**2}
        for key, metric in (("psnr", ImagePSNR.values), ("ssim", ImageSSIM.values), ("ssimulacra2", ssimulacra2)):
            numbers[key] = metric(result.pixels, original[None]).item()
        columns.append(Column(name, result.pixels[0], numbers))
    return columns


def find_zoom(columns: list[Column], size: float = _ZOOM) -> Zoom:
    """The square in which the models' squared errors are largest, each model's in units of its mean over the crop."""
    original, *results = (column.pixels.float() for column in columns)
    errors = torch.stack([(result - original).square().mean(0) for result in results])
    errors = errors / errors.mean((1, 2), keepdim=True).clamp(min=1e-9)
    side = original.shape[-1]
    window = Zoom(0, 0, size).box(side)[2]
    sums = F.avg_pool2d(errors.mean(0)[None, None].double(), window, stride=1)[0, 0]
    top, left = divmod(sums.argmax().item(), sums.shape[1])
    return Zoom(left / side, top / side, size)


def sides_figure(rows: list[list[Column]], zoom: Zoom, cell: int) -> Image.Image:
    """Figure 1: a row of crops with numbers for each side, and a row of details below it."""
    cells = []
    for columns in rows:
        crops = [Cell(_fit(column.pixels, cell), column.lines()) for column in columns]
        side = columns[0].pixels.shape[-1]
        left, top, size = (length * cell / side for length in zoom.box(side))
        frame = (left - 1, top - 1, left + size, top + size)
        ImageDraw.Draw(crops[0].image).rectangle(frame, outline="red", width=2)
        cells += [crops, [Cell(_fit(zoom.cut(column.pixels), cell)) for column in columns]]
    return sheet([column.name for column in rows[0]], cells, cell)


def details_figure(photos: list[tuple[str, list[Column], Zoom]], cell: int) -> Image.Image:
    """Figure 7: for each photo a row of details with the numbers of the whole crop, and a row of error maps below it."""
    rows = []
    for name, columns, zoom in photos:
        original, *details = (zoom.cut(column.pixels) for column in columns)
        rows.append([Cell(_fit(zoom.cut(column.pixels), cell), column.lines()) for column in columns])
        rows[-1][0].lines.insert(0, name)
        left, top, size = zoom.box(columns[0].pixels.shape[-1])
        legend = Image.new("RGB", (cell, cell), "white")
        text = f"{size} x {size} at {left}, {top}\nabove: numbers of\nthe whole crop\n\nright: error x {ERROR_GAIN},\n"
        ImageDraw.Draw(legend).text((0, 0), text + "PSNR of the detail", fill="black", font=ImageFont.load_default(12))
        rows.append([Cell(legend)])
        for detail in details:
            psnr = ImagePSNR.values(detail[None], original[None]).item()
            rows[-1].append(Cell(_fit(error_map(original, detail), cell), [f"detail {psnr:.2f} dB"]))
    return sheet([column.name for column in photos[0][1]], rows, cell)


def sheet(titles: Sequence[str], rows: Sequence[Sequence[Cell]], cell: int) -> Image.Image:
    """Cells of one size in rows, with lines below them and titles above the columns. Text is broken to fit its cell."""
    font = ImageFont.load_default(12)
    above = [_broken([title], font, cell) for title in titles]
    below = [[_broken(item.lines, font, cell) for item in row] for row in rows]
    top = _GAP + max(map(len, above)) * _LINE
    heights = [cell + max(map(len, texts)) * _LINE + _GAP for texts in below]
    result = Image.new("RGB", (_GAP + len(titles) * (cell + _GAP), top + sum(heights)), "white")
    draw = ImageDraw.Draw(result)

    def write(column: int, y: int, lines: Sequence[str]) -> None:
        for number, line in enumerate(lines):
            draw.text((_GAP + column * (cell + _GAP), y + number * _LINE), line, fill="black", font=font)

    for column, lines in enumerate(above):
        write(column, top - len(lines) * _LINE - 2, lines)
    for row, texts, height in zip(rows, below, heights, strict=True):
        for column, (item, lines) in enumerate(zip(row, texts, strict=True)):
            result.paste(item.image, (_GAP + column * (cell + _GAP), top))
            write(column, top + cell, lines)
        top += height
    return result


def _fit(pixels: torch.Tensor, cell: int) -> Image.Image:
    """uint8 pixels as an image of `cell` pixels; enlarged ones show their pixels."""
    shrinks = pixels.shape[-1] > cell
    return to_image(pixels).resize((cell, cell), Image.Resampling.LANCZOS if shrinks else Image.Resampling.NEAREST)


def _broken(lines: Sequence[str], font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The lines, those that are too wide in parts: broken after their last hyphen that fits, or anywhere."""
    result = []
    for line in lines:
        result.append("")
        for letter in line:
            if font.getlength(result[-1] + letter) > width:
                end = result[-1].rfind("-") + 1 or len(result[-1])
                result[-1:] = [result[-1][:end], result[-1][end:]]
            result[-1] += letter
    return result


def load_models(names: list[str] | None, codecs: bool) -> dict[str, AutoencoderReconstructor | CodecReconstructor]:
    """What to send photos through, by the names that figures show; models without names given fall in rate."""
    models = [build_reconstructor(name) for name in names or BEST_AT_EACH_RATE]
    if not names:
        models.sort(key=lambda reconstructor: -reconstructor.model.bits_per_pixel)
    if codecs:
        rates = {reconstructor.model.bits_per_pixel: None for reconstructor in models if reconstructor.codebook_sizes}
        if not rates:
            raise ValueError(
                "--codecs needs a tokenizer, whose rate they take: name codecs in --models, as jpeg@1.75bpp"
            )
        models += [build_reconstructor(f"{codec}@{rate:g}bpp") for rate in rates for codec in ("jpeg", "avif")]
    for reconstructor in models:
        if isinstance(getattr(reconstructor, "model", None), AutoencoderPQ):
            reconstructor.model.tile_sample_min_size = _TILE_SIDE
    labels = unique_names([Path(reconstructor.name).name.removeprefix("pqgan-") for reconstructor in models])
    return dict(zip(labels, models, strict=True))


def run(args: argparse.Namespace) -> None:
    """Check everything, then draw.

    Raises:
        ValueError: in one line, for a photo, a model, a size or a file that cannot be used.
    """
    if args.cell < _LEAST_CELL:
        raise ValueError(f"--cell ({args.cell}) must be at least {_LEAST_CELL} pixels, or its numbers do not fit")
    zoom = Zoom(*args.zoom) if args.zoom else None
    if zoom and not (min(zoom) >= 0 < zoom.size and max(zoom.x, zoom.y) + zoom.size <= 1):
        raise ValueError(f"--zoom ({' '.join(map(str, args.zoom))}) must lie inside the crop: fractions from 0 to 1")
    photos = images_of(args.photos)
    models, sides = load_models(args.models, args.codecs), sorted(set(args.sides))
    for side in sides:
        for name, reconstructor in models.items():
            check_resolution(side, reconstructor.factor, name)
    shown = {}  # photo: its sides
    for photo in photos:
        width, height = load_image(photo).size
        shown[photo] = [side for side in sides if side <= min(width, height)]
        if left_out := [str(side) for side in sides if side not in shown[photo]]:
            print(
                f"gallery: {photo} ({width} x {height}) is too small for {', '.join(left_out)}: left out",
                file=sys.stderr,
            )
    photos = [photo for photo in shown if shown[photo]]
    if not photos:
        raise ValueError(f"no photo has {sides[0]} pixels on its shorter side: give smaller --sides")
    files = [args.output / f"{name}.sides.png" for name in unique_names([photo.stem for photo in photos])]
    for file in (*files, args.output / "details.png"):
        check_new_file(file, args.force)
    details = []
    for photo, file in zip(photos, files, strict=True):
        image = load_image(photo)
        rows = [columns_at(side, image, models) for side in shown[photo]]
        place = zoom or find_zoom(rows[-1])
        for columns in rows:
            for column in columns[1:]:
                print(
                    f"{photo.stem} {columns[0].lines()[0]:11} {column.name:32} {', '.join(column.lines())}", flush=True
                )
        details.append((photo.stem, rows[-1], place))
        print(save_image(sides_figure(rows, place, args.cell), file))
    print(save_image(details_figure(details, args.cell), args.output / "details.png"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path, nargs="+", help="files, or folders of them")
    parser.add_argument("--models", nargs="+", help="shipped names, folders, Hub ids, or codecs such as jpeg@1.75bpp "
                        "(default: the best shipped tokenizer at each rate)")  # fmt: skip
    parser.add_argument("--codecs", action="store_true", help="also JPEG and AVIF at the rate of each tokenizer")
    parser.add_argument(
        "--sides", type=int, nargs="+", default=[256, 768, 1536], help="pixels (default: 256 768 1536)"
    )
    parser.add_argument("--zoom", type=float, nargs=3, metavar=("X", "Y", "SIZE"), help="corner and side of the detail "
                        "as fractions of the crop (default: 1/8 of the side, where errors are largest)")  # fmt: skip
    parser.add_argument("--cell", type=int, default=192, help="side of an image on a sheet in pixels (default: 192)")
    parser.add_argument("--output", type=Path, required=True, help="folder for the figures")
    parser.add_argument("--force", action="store_true", help="replace figures that are there")
    try:
        run(parser.parse_args(arguments))
    except ValueError as error:
        parser.exit(2, f"gallery: {error}\n")


if __name__ == "__main__":
    main()
