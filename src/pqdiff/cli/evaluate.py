"""`pqdiff evaluate`: measure tokenizers on a folder of images."""

from pathlib import Path
from typing import Annotated

import typer

from pqdiff.checkpoints import BUNDLED
from pqdiff.cli.options import LARGEST_SIDE, MODEL_HELP, Force, ImageSource, Json, Split

_SMALLEST = 11  # pixels: the window of SSIM
_COLUMNS = {
    "psnr_dataset": "PSNR dB",
    "psnr_image_mean": "mean PSNR",
    "ssim": "SSIM",
    "bits_per_pixel": "bits/px",
    "entropy_bits_per_pixel": "entropy",
    "codebook_utilization": "used",
}


def evaluate(
    source: ImageSource,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help=MODEL_HELP + " Can be repeated. Default: all shipped ones."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the metrics of all models.")] = Path(
        "metrics.json"
    ),
    resolution: Annotated[
        int,
        typer.Option(
            help="Side in pixels: the shorter side is resized to it, then the center is cropped.", max=LARGEST_SIDE
        ),
    ] = 256,
    every: Annotated[int, typer.Option(help="Use only every n-th image, in the order of the names.", min=1)] = 1,
    split: Split = "train",
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure how well tokenizers reconstruct images. Prints a table and writes the metrics to a file."""
    import json as json_module

    from pqdiff.data.files import atomic_file, check_new_file

    check_new_file(output, force)
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import number, print_json, print_lines, print_table, progress_bar
    from pqdiff.data.captions.captioned import iterate_images
    from pqdiff.metrics.protocol import evaluate_reconstruction
    from pqdiff.models.loading import load_tokenizer

    silence_libraries(quiet=json)
    autoencoders = {name: load_tokenizer(name) for name in model or BUNDLED}
    for name, autoencoder in autoencoders.items():
        _check_resolution(resolution, name, autoencoder.downsample_factor)
    results = {}
    data = Path(source).resolve().name if Path(source).is_dir() else source
    for name, autoencoder in autoencoders.items():
        images = (image for i, image in enumerate(iterate_images(source, split)) if i % every == 0)
        with progress_bar(quiet=json) as show:
            on_image = lambda count, name=name, show=show: show(name, count, 0)  # noqa: E731
            results[name] = evaluate_reconstruction(autoencoder, images, resolution, on_image)
        results[name]["data"] = f"{data}, every {every}" if every > 1 else data
    with atomic_file(output) as temporary:
        temporary.write_text(json_module.dumps(results, indent=2) + "\n")
    if json:
        print_json(results)
        return
    rows = [
        [name.removeprefix("pqgan-"), *(number(result["metrics"][column], 3) for column in _COLUMNS)]
        for name, result in results.items()
    ]
    count = next(iter(results.values()))["num_images"]
    print_table(f"{count} images at {resolution} px, 8-bit output", ["model", *_COLUMNS.values()], rows)
    print_lines(f"Written: {output}")


def _check_resolution(resolution: int, name: str, factor: int) -> None:
    least = -(-_SMALLEST // factor) * factor
    if resolution < _SMALLEST:
        raise ValueError(
            f"resolution ({resolution}) must be at least {least}: SSIM has a window of {_SMALLEST} pixels"
        )
    if resolution % factor:
        nearest = max(least, round(resolution / factor) * factor)
        raise ValueError(f"resolution ({resolution}) must be divisible by F = {factor} of {name}, such as {nearest}")
