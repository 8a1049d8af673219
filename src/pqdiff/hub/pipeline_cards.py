"""Cards of text-to-image pipelines. Their content comes from the folder, from the trainer or from a file of metrics."""

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

from pqdiff.clean_text import one_line
from pqdiff.hub.cards import in_one_line, sizes_text
from pqdiff.hub.measured import eval_results, measured_on, metric_rows
from pqdiff.json_text import read_json
from pqdiff.models import AutoencoderPQ
from pqdiff.pipelines.lora import LORA_WEIGHTS

_TEMPLATE = Path(__file__).parent / "pipeline_card.md.jinja"
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TRAINING = ("steps", "dataset", "batch_size", "stages", "hours", "hardware", "dataset_id", "note")

# Licenses that an adapted model inherits from its base, by a part of the base's name: their ids on the Hub, and titles.
_LICENSES = {
    "stable-diffusion-2": ("openrail++", "CreativeML Open RAIL++-M"),
    "stable-diffusion-xl": ("openrail++", "CreativeML Open RAIL++-M"),
    "stable-diffusion-v1": ("creativeml-openrail-m", "CreativeML Open RAIL-M"),
}
_OURS, _UNKNOWN = "apache-2.0", "unknown"

# Zavadski, Tatsch, Rother 2026, table 3: side in pixels, images per second and GB on an A100, for one image in 50 steps.
_PAPER_SPEED = {"hr": (1536, 0.112, 14.9), "precise": (768, 0.116, 14.8), "quick": (768, 0.465, 7.7)}


def write_pipeline_card(folder: str | Path, **content: Any) -> None:
    """Write `README.md` beside `model_index.json`, and `metrics.json` if metrics are given.

    It takes the keyword arguments of `render_pipeline_card` and raises the same errors. After an error nothing is written.
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
        base_model: Hub id or folder of the model that the UNet was adapted from; None if it was trained from scratch.
        variant: name, mapping or `pqdiff.pipelines.Variant`; None if there is none.
        training: a sentence that says how long the model was trained and on what; or a mapping with `steps` and `dataset`
            (in words), and optionally `batch_size` (images per step over all processes), `stages` (as those of a
            variant), `hours`, `hardware`, `dataset_id` (of the Hub) and `note` (further sentences).
        metrics: our measurements. `metrics` maps names to numbers (None: undefined) or to further mappings. `data`,
            `num_images` or `num_prompts`, and the mapping `protocol` say what was measured on, and how. Default: the
            folder's `metrics.json`, if there is one.
        samples: paths of images below `folder`. Default: those in `samples/`.
        license: its id on the Hub. Default: the one that the base demands; without a base apache-2.0.
        load: Python expression that `from_pretrained` takes, e.g. a quoted folder or Hub id. Default: `name` in quotes.
        limits: sentences to add to the limits.

    Raises:
        ValueError: if an argument lacks something that the card must say, or a file is missing. The message names it.
    """
    folder = Path(folder)
    index = read_json(folder / "model_index.json", f"{folder}: model_index.json")
    base_id = base_model if base_model and _HUB_ID.fullmatch(base_model) and not Path(base_model).exists() else None
    base = base_id or (Path(base_model).name if base_model else None)  # a card must not show paths of this machine
    license, license_text = _license(license, base)
    variant = _as_mapping(variant)
    first_line, made, stages = _training(training)
    if metrics is None and (folder / "metrics.json").is_file():
        metrics = read_json(folder / "metrics.json", f"{folder}: metrics.json")
    variant, metrics, name, base = map(in_one_line, (variant, metrics, name, base))
    rows = metric_rows(metrics) if metrics else []
    kind, facts = in_one_line(_facts(folder, base, variant))
    pipeline_class = one_line(index.get("_class_name"))
    card = ModelCard.from_template(
        ModelCardData(
            library_name="diffusers",
            license=license,
            pipeline_tag="text-to-image",
            base_model=base_id,
            datasets=[training["dataset_id"]] if isinstance(training, Mapping) and "dataset_id" in training else None,
            tags=["pqdiff", "stable-diffusion", *([f"{kind}-quantization"] if kind else [])],
            model_name=name,
            eval_results=eval_results(metrics, rows) if rows else None,
        ),
        template_path=str(_TEMPLATE),
        name=name,
        first_line=one_line(first_line),
        facts=facts,
        package="diffusers" if _is_stock(pipeline_class) else "pqdiff",
        pipeline_class=pipeline_class,
        load=load or json.dumps(name),
        fp16=any((folder / "unet").glob("*.fp16*.safetensors")),
        lora=(folder / LORA_WEIGHTS).is_file(),
        prompt=json.dumps("a small red circle above a large blue square"),
        samples=[sample for sample in _samples(folder, samples) if sample.isprintable()],
        made=one_line(made),
        stages=in_one_line(stages),
        rows=[(key, "-" if value is None else f"{value:.6g}") for key, value in rows],
        measured_on=one_line(measured_on(metrics)) if rows else None,
        paper=_paper(variant.get("name")),
        limits=one_line(_limits(base, kind is not None, bool(rows), limits)),
        license_text=one_line(license_text),
    )
    return card.content.rstrip() + "\n"


def _is_stock(pipeline_class: str) -> bool:
    """Whether this is a class of diffusers itself: `pqdiff.pipelines` adds our classes to its names."""
    return getattr(getattr(diffusers, pipeline_class, None), "__module__", "").startswith("diffusers.")


def render_bare_card(name: str, pipeline_tag: str, statement: str) -> str:
    """Text of a card for a folder about which only `statement` is known."""
    data = ModelCardData(
        library_name="diffusers", license=_UNKNOWN, pipeline_tag=pipeline_tag, tags=["pqdiff"], model_name=name
    )
    return f"---\n{data}\n---\n\n# {name}\n\n{statement} Nothing was measured. The license is unknown.\n"


def known_license(base_model: str | None) -> str | None:
    """Id of the license that a model adapted from `base_model` inherits; None if pqdiff does not know it."""
    return next((pair[0] for part, pair in _LICENSES.items() if part in (base_model or "").lower()), None)


def _training(training: str | Mapping[str, Any]) -> tuple[str, str, list]:
    """First line of the card, the paragraph on how the model was made, and the stages."""
    if isinstance(training, str):
        if not training.strip():
            raise ValueError("training ('') is empty: say how long the model was trained and on what")
        return training.strip(), training.strip(), []
    unknown = sorted(set(training) - set(_TRAINING))
    if unknown or not {"steps", "dataset"} <= set(training):
        wrong = f"has the unknown key {unknown[0]!r}" if unknown else "must have steps and dataset"
        raise ValueError(f"training {wrong}: it takes the keys {', '.join(_TRAINING)}")
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
            raise ValueError(
                f"license must be given for a model adapted from {base}: pqdiff does not know its license"
            )
        return (known, _inherited(base, known)) if known else (_OURS, f"`{_OURS}`; trained from scratch.")
    if license == known:
        return license, _inherited(base, known)
    return license, "Not recorded: ask the author." if license == _UNKNOWN else f"`{license}`."


def _inherited(base: str, license: str) -> str:
    title = dict(_LICENSES.values())[license]
    return (
        f"The UNet derives from {base} and inherits its license, {title} (`{license}`), with the restrictions of use "
        "that this license demands of every derivative."
    )


def _facts(folder: Path, base: str | None, variant: Mapping[str, Any]) -> tuple[str | None, list[tuple[str, str]]]:
    """Kind of the quantizer, None if the autoencoder has none, and the rows of the first table."""
    unet = read_json(folder / "unet" / "config.json", f"{folder}: unet/config.json")
    vae = read_json(folder / "vae" / "config.json", f"{folder}: vae/config.json")
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json", f"{folder}: scheduler/scheduler_config.json")
    rows = [("", "")]
    if variant.get("name"):
        rows.append(("variant", variant["name"]))
    if base:
        rows.append(("adapted from", base))
    kind = None
    if vae.get("_class_name") == "AutoencoderPQ":
        with torch.device("meta"):  # the facts need no weights
            model = AutoencoderPQ.from_config(vae)
        kind = model.config.quantizer_type.replace("_", "-")
        factor, sizes = model.downsample_factor, model.quantizer.codebook_sizes
        rows.append(("autoencoder", model.config.preset or f"{kind} quantizer"))
        rows.append(("tokens per position", str(len(sizes))))
        rows.append(("codebook sizes", sizes_text(sizes)))
        rows.append(("bits per position", f"{model.quantizer.bits_per_position:g}"))
        rows.append(("bits per pixel", f"{model.bits_per_pixel:g}"))
    else:
        factor = 2 ** (len(vae["block_out_channels"]) - 1)
        rows.append(("autoencoder", f"{vae.get('_class_name')}, not quantized"))
    rows.append(("downsampling factor F, latent channels d", f"{factor}, {vae['latent_channels']}"))
    side = unet.get("sample_size")
    if isinstance(side, int):
        rows.append(("image", f"{side * factor} x {side * factor} px"))
    rows.append(("parameters of the UNet", f"{_parameters(folder / 'unet'):,}"))
    rows.append(("prediction", str(scheduler.get("prediction_type", "epsilon"))))
    return kind, rows


def _parameters(folder: Path) -> int:
    """Number of parameters in the full-precision weights, read from their headers."""
    total = 0
    for path in folder.glob("*.safetensors"):
        if "." not in path.stem:  # weights of a variant have a point in their name
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
        f"The paper's {name} model, made from Stable Diffusion 2.1 by 1,020,000 steps of 32 photos: {speed:g} images per "
        f"second and {memory:g} GB for one image of {side} px in 50 steps on an A100; Stable Diffusion 2.1 at 768 px has "
        "0.116 and 14.9 (Zavadski, Tatsch, Rother 2026, table 3). Not this checkpoint, and not our machine."
    )


def _limits(base: str | None, quantized: bool, measured: bool, further: str) -> str:
    sentences = ["The model can only be as good as its training, which the first line describes."]
    if base:
        sentences.append("It has the biases and faults of the model that it was adapted from.")
    if quantized:
        sentences.append("Details that the autoencoder cannot encode do not appear in its images.")
    if not measured:
        sentences.append("Nothing was measured.")
    return " ".join([*sentences, *([further.strip()] if further.strip() else [])])


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if isinstance(value, str):
        return {"name": value}
    return dataclasses.asdict(value) if dataclasses.is_dataclass(value) else value
