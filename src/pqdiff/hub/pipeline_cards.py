"""Cards of text-to-image pipelines: what is said comes from the folder, from the trainer or from a file of metrics."""

import dataclasses
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from huggingface_hub import ModelCard, ModelCardData
from safetensors import safe_open

from ..models import AutoencoderPQ
from .check import read_json
from .measured import eval_results, measured_on, metric_rows

LORA_WEIGHTS = "pytorch_lora_weights.safetensors"  # the name that diffusers saves and loads
_TEMPLATE = Path(__file__).parent / "pipeline_card.md.jinja"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TRAINING = ("steps", "dataset", "batch_size", "stages", "hours", "hardware", "dataset_id", "note")

# What an adapted model inherits from its base, and the name by which the Hub knows that license.
_LICENSES = {
    "stable-diffusion-2": ("openrail++", "CreativeML Open RAIL++-M"),
    "stable-diffusion-xl": ("openrail++", "CreativeML Open RAIL++-M"),
    "stable-diffusion-v1": ("creativeml-openrail-m", "CreativeML Open RAIL-M"),
}
_OURS, _UNKNOWN = "apache-2.0", "unknown"

# Zavadski, Tatsch, Rother 2026, table 3: pictures a second and GB on an A100, 50 steps, one picture.
_PAPER_SPEED = {"hr": (1536, 0.112, 14.9), "precise": (768, 0.116, 14.8), "quick": (768, 0.465, 7.7)}


def write_pipeline_card(folder: str | Path, **content: Any) -> None:
    """Write `README.md` beside `model_index.json`, and `metrics.json` if metrics are given.

    Takes the keyword arguments of `render_pipeline_card` and raises what it raises; then nothing is written.
    """
    folder = Path(folder)
    text = render_pipeline_card(folder, **content)
    if content.get("metrics") is not None:
        (folder / "metrics.json").write_text(json.dumps(content["metrics"], indent=2) + "\n")
    (folder / "README.md").write_text(text)


def render_pipeline_card(
    folder: str | Path,
    *,
    name: str,
    base_model: str | None,
    variant: Any,
    training: str | Mapping[str, Any],
    metrics: Mapping[str, Any] | None = None,
    samples: Sequence[str] | None = None,
    license: str | None = None,
    load: str | None = None,
    limits: str = "",
) -> str:
    """Text of a card.

    Args:
        folder: a pipeline as `save_pretrained` wrote it.
        name: title of the card.
        base_model: Hub id or folder that the UNet was adapted from; None if it was trained from scratch.
        variant: name, mapping or `pqdiff.pipelines.Variant`; None if there is none.
        training: a sentence that says how long it was trained and on what, or a mapping with `steps` and `dataset` (in
            words) and maybe `batch_size` (images per step, all processes), `stages` (as those of a variant), `hours`,
            `hardware`, `dataset_id` (of the Hub) and `note` (further sentences).
        metrics: what we measured: `metrics` maps names to numbers (None: undefined) or to further mappings; `data`,
            `num_images` or `num_prompts`, and the mapping `protocol` say on what and how. Default: `metrics.json` of the
            folder, if it is there.
        samples: paths of pictures below `folder`. Default: those in `samples/`.
        license: id of the Hub. Default: what the base obliges to; without a base apache-2.0.
        load: Python expression, e.g. a quoted folder or Hub id, that `from_pretrained` takes. Default: `name` in quotes.
        limits: sentences to add to the limits.

    Raises:
        ValueError: naming the argument, if it does not say what the card must say, or a file that is missing.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json", f"{folder}: model_index.json")
    base_id = base_model if base_model and _HUB_ID.fullmatch(base_model) and not Path(base_model).exists() else None
    base = base_id or (Path(base_model).name if base_model else None)  # no paths of this machine
    license, license_text = _license(license, base)
    variant = _as_mapping(variant)
    first_line, made, stages = _training(training)
    if metrics is None and (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json", f"{folder}: metrics.json")
    rows = metric_rows(metrics) if metrics else []
    has_pq, facts = _facts(folder, base, variant)
    pipeline_class = str(index.get("_class_name"))
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            license=license,
            pipeline_tag="text-to-image",
            base_model=base_id,
            datasets=[training["dataset_id"]] if isinstance(training, Mapping) and "dataset_id" in training else None,
            tags=["pqdiff", "stable-diffusion", *(["product-quantization"] if has_pq else [])],
            model_name=name,
            eval_results=eval_results(metrics, rows) if rows else None,
        ),
        template_path=str(_TEMPLATE),
        name=name,
        first_line=first_line,
        facts=facts,
        package="diffusers" if _is_stock(pipeline_class) else "pqdiff",
        pipeline_class=pipeline_class,
        load=load or json.dumps(name),
        fp16=any((folder / "unet").glob("*.fp16*.safetensors")),
        lora=(folder / LORA_WEIGHTS).is_file(),
        prompt=json.dumps("a small red circle above a large blue square"),
        samples=_samples(folder, samples),
        made=made,
        stages=stages,
        rows=[(key, "-" if value is None else f"{value:.6g}") for key, value in rows],
        measured_on=measured_on(metrics) if rows else None,
        paper=_paper(variant.get("name")),
        limits=_limits(base, has_pq, bool(rows), limits),
        license_text=license_text,
    )
    return card.content.rstrip() + "\n"


def _is_stock(pipeline_class: str) -> bool:
    """Whether diffusers has a class of its own by that name: `pqdiff.pipelines` puts ours beside them."""
    return getattr(getattr(diffusers, pipeline_class, None), "__module__", "").startswith("diffusers.")


def render_bare_card(name: str, pipeline_tag: str, statement: str) -> str:
    """Text of a card for a folder of which nothing more than `statement` can be said."""
    data = ModelCardData(
        library_name="diffusers", license=_UNKNOWN, pipeline_tag=pipeline_tag, tags=["pqdiff"], model_name=name
    )
    return f"---\n{data}\n---\n\n# {name}\n\n{statement} Nothing was measured. The license is unknown.\n"


def known_license(base_model: str | None) -> str | None:
    """Id of the license that a model adapted from `base_model` inherits; None if it is not known here."""
    return next((pair[0] for part, pair in _LICENSES.items() if part in (base_model or "").lower()), None)


def _training(training: str | Mapping[str, Any]) -> tuple[str, str, list]:
    """First line of the card, the paragraph on how the model was made, and the stages."""
    if isinstance(training, str):
        if not training.strip():
            raise ValueError("training is empty: say how long the model was trained and on what")
        return training.strip(), training.strip(), []
    unknown = sorted(set(training) - set(_TRAINING))
    if unknown or not {"steps", "dataset"} <= set(training):
        wrong = f"has the unknown key {unknown[0]!r}" if unknown else "must have steps and dataset"
        raise ValueError(f"training {wrong}: it takes {', '.join(_TRAINING)}")
    steps, batch = training["steps"], training.get("batch_size")
    if not isinstance(steps, int):
        raise ValueError(f"training: steps ({steps!r}) must be an integer")
    length = f"{steps:,} step{'s' * (steps != 1)}"
    if batch:
        length += f" of {batch:,} image{'s' * (batch != 1)}"
    first = f"Trained for {length} on {training['dataset']}."
    made = [first]
    if "hours" in training:
        place = f" on {training['hardware']}" if "hardware" in training else ""
        made.append(f"That took {training['hours']:.3g} hours{place}.")
    elif "hardware" in training:
        made.append(f"Trained on {training['hardware']}.")
    made += [training["note"]] if training.get("note") else []
    stages = [_as_mapping(stage) for stage in training.get("stages", ())]
    return first, " ".join(made), stages


def _license(license: str | None, base: str | None) -> tuple[str, str]:
    known = known_license(base)
    if license is None:
        if base is not None and known is None:
            raise ValueError(f"license must be given for a model adapted from {base}: its license is not known here")
        return (known, _inherited(base, known)) if known else (_OURS, f"`{_OURS}`; trained from scratch.")
    if license == known:
        return license, _inherited(base, known)
    return license, "Not recorded: ask the author." if license == _UNKNOWN else f"`{license}`."


def _inherited(base: str, license: str) -> str:
    title = dict(_LICENSES.values())[license]
    return (
        f"The UNet derives from {base} and inherits its license, {title} (`{license}`), with the restrictions of use "
        "that it demands of every derivative."
    )


def _facts(folder: Path, base: str | None, variant: Mapping[str, Any]) -> tuple[bool, list[tuple[str, str]]]:
    """Whether the latents are product-quantized, and rows of the first table."""
    unet = read_json(folder / "unet" / "config.json", f"{folder}: unet/config.json")
    vae = read_json(folder / "vae" / "config.json", f"{folder}: vae/config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", f"{folder}: scheduler/scheduler_config.json")
    factor, channels = 2 ** (len(vae["block_out_channels"]) - 1), vae["latent_channels"]
    rows = [("", "")]
    if variant.get("name"):
        rows.append(("variant", variant["name"]))
    if base:
        rows.append(("adapted from", base))
    has_pq = vae.get("_class_name") == "AutoencoderPQ"
    if has_pq:
        with torch.device("meta"):  # the rate needs no weights
            model = AutoencoderPQ.from_config(vae)
        quantizer = vae["quantizer_config"]
        rows.append(("autoencoder", vae.get("preset") or f"{vae['quantizer_type']} quantizer"))
        if "num_subspaces" in quantizer:
            rows.append(("subspaces S, codewords K", f"{quantizer['num_subspaces']}, {quantizer['codebook_size']}"))
        rows.append(("bits per position", f"{model.quantizer.bits_per_position:g}"))
        rows.append(("bits per pixel", f"{model.bits_per_pixel:g}"))
    else:
        rows.append(("autoencoder", f"{vae.get('_class_name')}, not quantized"))
    rows.append(("downsampling F, latent channels d", f"{factor}, {channels}"))
    side = unet.get("sample_size")
    if isinstance(side, int):
        rows.append(("picture", f"{side * factor} x {side * factor} px"))
    rows.append(("parameters of the UNet", f"{_parameters(folder / 'unet'):,}"))
    rows.append(("prediction", str(scheduler.get("prediction_type", "epsilon"))))
    return has_pq, rows


def _parameters(folder: Path) -> int:
    """Numbers in the full-precision weights, from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        if "." not in path.stem:  # variants have a point there
            with safe_open(path, framework="numpy") as file:
                shapes = [file.get_slice(key).get_shape() for key in sorted(file.keys())]
                total += sum(map(math.prod, shapes))
    return total


def _samples(folder: Path, samples: Sequence[str] | None) -> list[str]:
    if samples is None:
        return sorted(path.relative_to(folder).as_posix() for path in (folder / "samples").glob("*.png"))
    for sample in samples:
        if not (folder / sample).is_file():
            raise ValueError(f"samples names {sample}, which is not in {folder}")
    return [Path(sample).as_posix() for sample in samples]


def _paper(name: str | None) -> str | None:
    if name not in _PAPER_SPEED:
        return None
    side, speed, memory = _PAPER_SPEED[name]
    return (
        f"Of its own {name} model, made from Stable Diffusion 2.1 by 1,020,000 steps of 32 photos: {speed:g} pictures a "
        f"second and {memory:g} GB for one picture of {side} px in 50 steps on an A100, where Stable Diffusion 2.1 at "
        "768 px has 0.116 and 14.9 (Zavadski, Tatsch, Rother 2026, table 3). Not this checkpoint, nor our machine."
    )


def _limits(base: str | None, has_pq: bool, measured: bool, further: str) -> str:
    sentences = ["It can be no better than its training, which the first line sums up."]
    if base:
        sentences.append("It has the biases and failures of the model it was adapted from.")
    if has_pq:
        sentences.append("Details finer than the autoencoder keeps cannot appear in a picture.")
    if not measured:
        sentences.append("Nothing was measured.")
    return " ".join([*sentences, *([further.strip()] if further.strip() else [])])


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"name": value}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
