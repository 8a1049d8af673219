"""`pqdiff compare`: tokenizers and codecs on the same images, quality against bits per pixel."""

from typing import Annotated

import typer

from pqdiff.checkpoints import BUNDLED
from pqdiff.cli.evaluate import CODEC_HELP, Every, Resolution, Strict, measure, print_results, write_metrics
from pqdiff.cli.options import MODEL_HELP, Force, ImageSource, Json, OutputFolder, Split

_CURVES = {"jpeg": (10, 25, 50, 75, 90, 95), "webp": (5, 25, 50, 75, 90, 97), "avif": (15, 30, 50, 65, 80, 90)}


def compare(
    source: ImageSource,
    output: OutputFolder,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help=MODEL_HELP + CODEC_HELP + " Can be repeated. Default: all shipped tokenizers."
        ),
    ] = None,
    codecs: Annotated[bool, typer.Option(help="Also curves of JPEG, WebP and AVIF.")] = True,
    resolution: Resolution = 256,
    every: Every = 1,
    split: Split = "train",
    strict: Strict = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Compare models with each other and with codecs. Writes metrics.json and a plot of quality against bits per pixel."""
    from importlib.util import find_spec

    from pqdiff.data.files import check_new_file

    if find_spec("matplotlib") is None:  # found out before the work
        raise ValueError("the plot needs matplotlib: install pqdiff[eval]")
    files = output / "metrics.json", output / "rate_quality.png"
    for file in files:
        check_new_file(file, force)
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import print_json, print_lines
    from pqdiff.metrics.rate_plot import plot_rate_quality

    silence_libraries(quiet=json)
    names = [*(model or BUNDLED)]
    if codecs:
        names += [f"{codec}:{quality}" for codec, qualities in _CURVES.items() for quality in qualities]
    results = measure(source, names, resolution, every, split, strict, json, [])
    first = next(iter(results.values()))
    write_metrics(results, files[0])
    plot_rate_quality(results, files[1], f"{first['num_images']} images of {first['data']}, {resolution} px")
    if json:
        print_json(results)
        return
    ordered = sorted(results.items(), key=lambda item: -(item[1]["metrics"].get("bits_per_pixel") or 0))
    print_results(dict(ordered), resolution)
    print_lines("Written:", *(f"  {file}" for file in files))
