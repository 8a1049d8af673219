"""Commands on models: info, evaluate, fit."""

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from ..data.files import atomic_file, atomic_folder, check_new_folder
from ..data.images import iterate_images, resize_and_crop, to_tensor
from ..hub.cards import write_card
from ..hub.resolve import load_autoencoder
from ..models import PRESETS
from ..models.fingerprint import fingerprint
from .output import number, print_json, print_table, progress_bar
from .photos import MODEL_HELP, Json

Source = Annotated[str, typer.Argument(help="Folder of photos, or id of a data set on the Hub.", show_default=False)]


def info(
    model: Annotated[str | None, typer.Argument(help=MODEL_HELP, show_default=False)] = None,
    backends: Annotated[
        bool, typer.Option("--backends", help="Show the searches for nearest codewords, and which one is used.")
    ] = False,
    json: Json = False,
) -> None:
    """Show a tokenizer's configuration, size and rate, and how it uses its codebooks if that was measured."""
    if backends == (model is not None):
        raise ValueError("info needs the name of a model, or --backends alone")
    if backends:
        _show_backends(json)
        return
    autoencoder = load_autoencoder(model)
    config = {key: value for key, value in dict(autoencoder.config).items() if not key.startswith("_")}
    facts = {
        "model": model,
        "fingerprint": fingerprint(autoencoder),
        "parameters": sum(parameter.numel() for parameter in autoencoder.parameters()),
        "downsample_factor": autoencoder.downsample_factor,
        "tokens_per_position": len(autoencoder.quantizer.codebook_sizes),
        "bits_per_position": autoencoder.quantizer.bits_per_position,
        "bits_per_pixel": autoencoder.bits_per_pixel,
    }
    measured = _read_metrics(Path(autoencoder.config._name_or_path) / "metrics.json", facts["fingerprint"])
    if json:
        print_json({**facts, "config": config, "measured": measured})
        return
    rows = [[key, f"{value:,}" if isinstance(value, int) else f"{value}"] for key, value in facts.items()]
    for key, value in config.items():
        text = f"{len(value)} values" if isinstance(value, (list, tuple)) and len(value) > 8 else str(value)
        rows.append([f"config.{key}", text])
    if measured:
        rows += [[f"measured.{key}", number(value, 4)] for key, value in measured["metrics"].items()]
        rows.append(["measured.on", f"{measured['num_images']} images, {measured['data']}"])
    else:
        rows.append(["measured", "nothing yet: run pqdiff evaluate"])
    print_table(model, ["", "value"], rows)


def _show_backends(json: bool) -> None:
    from ..quantizers.backends import ENVIRONMENT_VARIABLE, describe, forced_backend

    rows = describe()
    if json:
        print_json({"forced": forced_backend(), "backends": rows})
        return
    table = [
        [row["name"], "yes" if row["available"] else f"no: {row['reason']}", ", ".join(row["serves"]) or "-"]
        for row in rows
    ]
    forced = forced_backend()
    title = f"Search, forced by {ENVIRONMENT_VARIABLE}={forced}" if forced else "Search, chosen automatically"
    print_table(title, ["backend", "available", "used on"], table)


def evaluate(
    source: Source,
    model: Annotated[list[str] | None, typer.Option("--model", "-m", help=MODEL_HELP + " Repeatable.")] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="File for the metrics of all models.")] = Path(
        "metrics.json"
    ),
    resolution: Annotated[int, typer.Option(help="Shorter side by Lanczos, then center crop, in pixels.")] = 256,
    every: Annotated[int, typer.Option(help="Use every n-th photo in name order.", min=1)] = 1,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    json: Json = False,
) -> None:
    """Measure tokenizers on a folder of photos; print a table and write metrics.json."""
    from ..checkpoints import BUNDLED
    from ..metrics.protocol import evaluate_reconstruction

    if output.is_dir():
        raise ValueError(f"output ({output}) is a folder: give a file for the metrics")
    autoencoders = {name: load_autoencoder(name) for name in model or BUNDLED}
    for name, autoencoder in autoencoders.items():
        if resolution % autoencoder.downsample_factor or resolution < 11:
            raise ValueError(
                f"resolution ({resolution}) must be divisible by {autoencoder.downsample_factor} for {name}"
            )
    results = {}
    place = Path(source).resolve().name if Path(source).is_dir() else source
    for name, autoencoder in autoencoders.items():
        images = (image for i, (_, image) in enumerate(iterate_images(source, split)) if i % every == 0)
        with progress_bar(quiet=json) as show:
            on_image = lambda count, name=name, show=show: show(name, count, 0)  # noqa: E731
            results[name] = evaluate_reconstruction(autoencoder, images, resolution, on_image)
        results[name]["data"] = f"{place}, every {every}" if every > 1 else place
    with atomic_file(output) as temporary:
        temporary.write_text(json_module.dumps(results, indent=2) + "\n")
    if json:
        print_json(results)
        return
    columns = {
        "psnr_dataset": "PSNR dB",
        "psnr_image_mean": "mean PSNR",
        "ssim": "SSIM",
        "bits_per_pixel": "bits/px",
        "entropy_bits_per_pixel": "entropy",
        "codebook_utilization": "used",
    }
    rows = [
        [name.removeprefix("pqgan-"), *(number(result["metrics"][column], 3) for column in columns)]
        for name, result in results.items()
    ]
    count = next(iter(results.values()))["num_images"]
    print_table(f"{count} images at {resolution} px, 8-bit output", ["model", *columns.values()], rows)
    print(f"Written: {output}")


def fit(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the model, or one folder per preset.")],
    preset: Annotated[list[str], typer.Option("--preset", "-p", help=f"{', '.join(PRESETS)}. Repeatable.")],
    resolution: Annotated[int, typer.Option(help="Shorter side of the photos in pixels, by Lanczos.", min=8)] = 256,
    hidden_channels: Annotated[
        int | None, typer.Option(help="Coefficients per patch beyond the latents; default: preset's.")
    ] = None,
    class_bases: Annotated[
        int,
        typer.Option(help="Bases of classes of patches, e.g. 16: better pictures at the same rate; 0: none.", min=0),
    ] = 0,
    scaling_exponent: Annotated[
        float, typer.Option(help="0: one scale for all latent channels; 1: unit variance each.")
    ] = 0.0,
    exclude_every: Annotated[
        int, typer.Option(help="Leave out every n-th photo in name order, to measure on; 0: none.")
    ] = 0,
    split: Annotated[str, typer.Option(help="Split of a Hub data set.")] = "train",
    seed: Annotated[int, typer.Option(help="Same seed, same photos, same machine: same model.")] = 0,
    json: Json = False,
) -> None:
    """Fit tokenizers to photos without a GPU and without gradients, in minutes."""
    from ..models.closed_form import fit_closed_form
    from ..models.presets import closed_form_config

    for name in preset:
        closed_form_config(name, hidden_channels, class_bases)  # a wrong name stops the command before the work starts
    folders = [output if len(preset) == 1 else output / f"pqgan-{name}" for name in preset]
    for folder in folders:
        check_new_folder(folder)  # before minutes of work
    fitted = []
    for name, folder in zip(preset, folders, strict=True):
        with atomic_folder(folder) as temporary, progress_bar(quiet=json) as show:
            images = (
                to_tensor(resize_and_crop(image, resolution, crop=False))
                for i, (_, image) in enumerate(iterate_images(source, split))
                if not (exclude_every and i % exclude_every == 0)
            )
            on_step = lambda stage, step, steps, name=name, show=show: show(f"{name}: {stage}", step, steps)  # noqa: E731
            shape = {"hidden_channels": hidden_channels, "class_bases": class_bases}
            model = fit_closed_form(
                images, name, **shape, scaling_exponent=scaling_exponent, seed=seed, on_step=on_step
            )
            model.save_pretrained(temporary)
            command = f"pqdiff fit {Path(source).name} --preset {name} --resolution {resolution} --seed {seed}"
            command += f" --class-bases {class_bases}" * bool(class_bases)
            write_card(model, temporary, folder.name, f"Fitted by `{command}`.", f'"{folder.name}"')
        fitted.append({"preset": name, "folder": str(folder), "fingerprint": fingerprint(model)})
    if json:
        print_json({"fitted": fitted})
    else:
        print("\n".join(["Written:", *(f"  {row['folder']}" for row in fitted)]))


def _read_metrics(path: Path, mark: str) -> dict | None:
    """Metrics of the model with fingerprint `mark`: those beside its weights, or its part of what `evaluate` wrote."""
    if not path.is_file():
        return None
    try:
        document = json_module.loads(path.read_text())
        candidates = [document] if "metrics" in document else list(document.values())
        measured = next((entry for entry in candidates if entry["protocol"]["fingerprint"] == mark), None)
        if measured is not None:
            {key: number(value, 4) for key, value in measured["metrics"].items()}
            measured["num_images"], measured["data"]
        return measured
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: not a file of metrics ({error})") from None
