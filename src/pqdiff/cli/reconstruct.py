"""`pqdiff reconstruct`: encode and decode images, and measure the difference."""

import itertools
import time
from pathlib import Path
from typing import Annotated

import typer

from pqdiff.checkpoints import BEST_AT_EACH_RATE
from pqdiff.cli.options import MODEL_HELP, Force, Images, Json, OutputFolder

# Short titles: names of models need a column wide enough to copy them from, in 80 characters.
_COLUMNS = {"PSNR dB": ("psnr", 2), "SSIM": ("ssim", 4), "SSIMULACRA2": ("ssimulacra2", 1), "s": ("seconds", 2)}


def reconstruct(
    images: Images,
    output: OutputFolder,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help=MODEL_HELP + " Can be repeated. Default: the best shipped one at each rate."
        ),
    ] = None,
    save_images: Annotated[
        bool, typer.Option(help="Also write each reconstruction as a PNG file of the original size.")
    ] = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Encode and decode images with tokenizers. Writes labelled panels, prints rate, PSNR, SSIM and SSIMULACRA2 of each."""
    from pqdiff.cli.image_files import images_of, save_image, unique_names
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import number, print_json, print_lines, progress_bar
    from pqdiff.cli.panels import panel
    from pqdiff.cli.tiled_tokenizer import decode_pixels, encode_pixels, load_tiled_autoencoder
    from pqdiff.data.files import check_new_file
    from pqdiff.data.images.reading import load_image, to_image, to_tensor
    from pqdiff.models.loading import load_tokenizer

    silence_libraries(quiet=json)
    images = images_of(images)
    names = model or sorted(BEST_AT_EACH_RATE, key=lambda name: -load_tokenizer(name).bits_per_pixel)
    labels = unique_names([Path(name).name for name in names])
    stems = unique_names([path.stem for path in images])
    for stem in stems:
        for kind in ("panel", *(labels if save_images else ())):
            check_new_file(output / f"{stem}.{kind}.png", force)
    models = list(zip(labels, map(load_tiled_autoencoder, names), strict=True))
    for path in images:
        load_image(path)  # a broken image stops the command before anything is written
    rows, files = [], []
    with progress_bar(quiet=json) as show:
        for count, (path, stem) in enumerate(zip(images, stems, strict=True)):
            pixels = to_tensor(load_image(path))
            columns = []
            for index, (name, autoencoder) in enumerate(models):
                show("reconstructing", count * len(models) + index, len(images) * len(models))
                start = time.perf_counter()
                result = decode_pixels(autoencoder, encode_pixels(autoencoder, pixels), *pixels.shape[1:])
                seconds = time.perf_counter() - start
                row = {"image": str(path), "model": name, "bits_per_pixel": autoencoder.bits_per_pixel}
                row |= {**_compare(result, pixels), "seconds": round(seconds, 3)}
                rows.append(row)
                caption = f"{row['bits_per_pixel']:g} bpp, {number(row['psnr'], 1)} dB"
                columns.append((name.removeprefix("pqgan-"), caption, result))
                if save_images:
                    files.append(save_image(to_image(result), output / f"{stem}.{name}.png"))
            files.append(save_image(panel(pixels, columns), output / f"{stem}.panel.png"))
    if json:
        print_json({"results": rows, "files": files})
    else:
        _print_tables(rows)
        print_lines("Written:", *(f"  {file}" for file in files))


def _print_tables(rows: list[dict]) -> None:
    """One table for each image, because the names of models need a column that is wide enough to copy them."""
    from pqdiff.cli.output import number, print_table

    for image, results in itertools.groupby(rows, lambda row: row["image"]):
        table = [
            [row["model"].removeprefix("pqgan-"), f"{row['bits_per_pixel']:g}"]
            + [number(row[key], digits) for key, digits in _COLUMNS.values()]
            for row in results
        ]
        print_table(Path(image).name, ["model", "bpp", *_COLUMNS], table)


def _compare(result, pixels) -> dict[str, float | None]:
    """PSNR, SSIM and SSIMULACRA2 of uint8 pixels `(3, H, W)`; None where the image is too small for a window."""
    from pqdiff.metrics.reconstruction import DatasetPSNR, ImageSSIM, as_number
    from pqdiff.metrics.ssimulacra2 import SSIMULACRA2

    values = {}
    for key, metric in (("psnr", DatasetPSNR()), ("ssim", ImageSSIM()), ("ssimulacra2", SSIMULACRA2())):
        if min(pixels.shape[1:]) >= getattr(metric, "least_side", 1):
            metric.update(result[None], pixels[None])
            values[key] = as_number(metric.compute())
        else:
            values[key] = None
    return values
