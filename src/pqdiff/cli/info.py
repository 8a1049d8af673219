"""`pqdiff info`: what a tokenizer is, or which searches for codewords this machine has."""

from pathlib import Path
from typing import Annotated

import typer

from pqdiff.cli.options import MODEL_HELP, Json


def info(
    model: Annotated[str | None, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)] = None,
    backends: Annotated[
        bool, typer.Option("--backends", help="Show the searches for nearest codewords, and which one is used.")
    ] = False,
    json: Json = False,
) -> None:
    """Show the configuration, size and rate of a tokenizer, and what was measured with it."""
    if backends == (model is not None):
        raise ValueError("info needs either the name of a model or --backends")
    if backends:
        _show_backends(json)
    else:
        _show_model(model, json)


def _show_model(name: str, json: bool) -> None:
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import number, print_json, print_table
    from pqdiff.models.fingerprint import fingerprint
    from pqdiff.models.loading import load_tokenizer

    silence_libraries(quiet=json)
    autoencoder = load_tokenizer(name)
    config = {key: value for key, value in dict(autoencoder.config).items() if not key.startswith("_")}
    facts = {
        "model": name,
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
    print_table(name, ["", "value"], rows)


def _show_backends(json: bool) -> None:
    from pqdiff.cli.output import print_json, print_table
    from pqdiff.quantizers.search.backends import ENVIRONMENT_VARIABLE, describe, forced_backend

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


def _read_metrics(path: Path, fingerprint: str) -> dict | None:
    """What was measured with the model of this fingerprint, or None if nothing was.

    Args:
        path: a file with the metrics of one model, or with those of several, as `pqdiff evaluate` writes it.
    """
    from pqdiff.cli.output import number
    from pqdiff.json_text import read_json

    if not path.is_file():
        return None
    try:
        document = read_json(path, "it")
        candidates = [document] if "metrics" in document else list(document.values())
        measured = next((entry for entry in candidates if entry["protocol"]["fingerprint"] == fingerprint), None)
        if measured is not None:  # everything that the table shows must be there
            {key: number(value, 4) for key, value in measured["metrics"].items()}
            measured["num_images"], measured["data"]
        return measured
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: is not a file of metrics ({error})") from None
