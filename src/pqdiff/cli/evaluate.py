"""`pqdiff evaluate`: measure tokenizers, other autoencoders and codecs on images."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from pqdiff.checkpoints import BUNDLED
from pqdiff.cli.options import LARGEST_SIDE, MODEL_HELP, Force, ImageSource, Json, Split

CODEC_HELP = " Or a codec: jpeg:75, jpeg444:90, webp:80, avif:60, or at a rate such as jpeg@1.75bpp."
_COLUMNS = {
    "psnr_dataset": "PSNR dB",
    "ssim": "SSIM",
    "ssimulacra2": "SSIMU2",
    "bits_per_pixel": "bits/px",
    "entropy_bits_per_pixel": "entropy",
    "codebook_utilization": "used",
    "changed_tokens": "changed",
}

_OF_NETWORKS = {"fd_efficientnet_lite0": "FD lite0", "rfid": "rFID", "cmmd": "CMMD", "lpips_alex": "LPIPS"}

Resolution = Annotated[
    int,
    typer.Option(
        help="Side in pixels: the shorter side is resized to it, then the center is cropped.", max=LARGEST_SIDE
    ),
]
Every = Annotated[int, typer.Option(help="Use only every n-th image, in the order of the names.", min=1)]
Strict = Annotated[bool, typer.Option("--strict", help="Stop at an image that cannot be read, instead of naming it.")]


def evaluate(
    source: ImageSource,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", help=MODEL_HELP + CODEC_HELP + " Can be repeated. Default: all shipped tokenizers."
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the metrics of all models.")] = Path(
        "metrics.json"
    ),
    resolution: Resolution = 256,
    every: Every = 1,
    network: Annotated[
        list[str] | None,
        typer.Option(
            help="Network for further metrics: efficientnet_lite0, inception (FID), clip (CMMD), lpips_alex, lpips_vgg. "
            "Can be repeated. Default: none."
        ),
    ] = None,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            help="Also measure tokenizers with noise of this standard deviation on their latents, such as 0.1. "
            "Can be repeated."
        ),
    ] = None,
    split: Split = "train",
    strict: Strict = False,
    force: Force = False,
    json: Json = False,
) -> None:
    """Measure how well images come back. Prints a table and writes the metrics to a file."""
    from pqdiff.data.files import check_new_file

    check_new_file(output, force)
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import print_json, print_lines

    silence_libraries(quiet=json)
    results = measure(
        source, model or list(BUNDLED), resolution, every, split, strict, json, network or [], noise or []
    )
    write_metrics(results, output)
    if json:
        print_json(results)
        return
    print_results(results, resolution)
    print_lines(f"Written: {output}")


def measure(
    source: str,
    names: list[str],
    resolution: int,
    every: int,
    split: str,
    strict: bool,
    quiet: bool,
    networks: list[str],
    noise: Sequence[float] = (),
) -> dict[str, dict]:
    """Results of all models and codecs by name, over the same images."""
    from pqdiff.cli.output import progress_bar
    from pqdiff.data.captions.captioned import open_captioned
    from pqdiff.metrics.evaluation import Evaluation, EvaluationRun
    from pqdiff.metrics.perception import perception_metrics
    from pqdiff.metrics.reconstructors import build_reconstructor
    from pqdiff.metrics.robustness import with_noise

    perception = perception_metrics(networks) if networks else None
    evaluations = {}
    for name in dict.fromkeys(names):
        reconstructor = build_reconstructor(name)
        for one in (reconstructor, *with_noise(reconstructor, noise)):
            own = perception.again() if perception is not None else None  # the networks are shared
            evaluations[one.name] = Evaluation(one, resolution, perception=own)
    images = open_captioned(source, split=split, streaming=True, captions=False)
    run = EvaluationRun(evaluations, processes=1, strict=strict)
    with progress_bar(quiet) as show:
        total = -(-len(images) // every) if hasattr(images, "__len__") else 0
        run.run(images.select(range(0, len(images), every)) if total else images.shard(0, every),
                lambda done: show("images", done, total))  # fmt: skip
    data = Path(source).resolve().name if Path(source).is_dir() else source
    results = run.results()
    for result in results.values():
        result["data"] = f"{data}, every {every}" if every > 1 else data
    return results


def write_metrics(results: dict, output: Path) -> None:
    """Write results as JSON."""
    import json

    from pqdiff.data.files import atomic_file

    with atomic_file(output) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")


def print_results(results: dict, resolution: int) -> None:
    """A table of all models, the images that could not be read, and what is missing for a number."""
    import sys

    from pqdiff.clean_text import clean
    from pqdiff.cli.output import number, print_table

    first = next(iter(results.values()))
    columns = {key: title for key, title in _COLUMNS.items() if any(key in r["metrics"] for r in results.values())}
    columns |= {
        key: title for key, title in _OF_NETWORKS.items() if any(key in r["metrics"] for r in results.values())
    }
    rows = [
        [name.removeprefix("pqgan-"), *(number(result["metrics"].get(column), 3) for column in columns)]
        for name, result in results.items()
    ]
    title = f"{first['num_images']} images at {resolution} px, 8-bit output"
    print_table(title, ["model", *columns.values()], rows)
    for error in first["broken"]:
        print(f"left out: {clean(error)}", file=sys.stderr)
    for name, reason in first["missing"].items():
        print(f"no {name}: {clean(reason)}", file=sys.stderr)
