"""Loads text-to-image pipelines by the name of a shipped one, by folder, or by Hub id."""

import importlib
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from pqdiff.checkpoints import BUNDLED, BUNDLED_PIPELINES, bundled
from pqdiff.clean_text import one_line
from pqdiff.json_text import read_json
from pqdiff.models.checks import check_limits
from pqdiff.pipelines import PQStableDiffusionPipeline
from pqdiff.pipelines.conversion import check_not_removed
from pqdiff.pipelines.lora import lora_weights
from pqdiff.suggestions import did_you_mean

_KINDS = tuple(f"{pq}StableDiffusion{task}Pipeline" for pq in ("", "PQ") for task in ("", "Img2Img"))
_LIBRARIES = ("diffusers", "transformers", "pqdiff")  # their models report missing weights
_VOCABULARIES = ("tokenizer.json", "vocab.json")


def load_pipeline(source: str | PathLike, dtype: torch.dtype = torch.float32) -> PQStableDiffusionPipeline:
    """A text-to-image pipeline. A stock Stable Diffusion works too, with its own autoencoder.

    LoRA layers beside its models, where `adapt_sd.py` writes them, are loaded as well.

    Args:
        source: name of a shipped pipeline, folder, or Hub id (`user/name`).
        dtype: data type of the models.

    Raises:
        ValueError: in one line that names the source and the fault, such as missing weights.
    """
    source = str(source)
    place = bundled(source) if source in BUNDLED_PIPELINES else source
    if place == source:
        _check_source(source)
    try:
        folder = Path(place if Path(place).exists() else PQStableDiffusionPipeline.download(place))
        index = read_json(folder / "model_index.json", "model_index.json")
        if index.get("_class_name") not in _KINDS:
            raise ValueError(f"it holds a {index.get('_class_name')}, not one of {', '.join(_KINDS)}")
        models = {name: _load_whole(folder, name, entry, dtype) for name, entry in index.items()}
        models = {name: model for name, model in models.items() if model is not None}
        pipeline = PQStableDiffusionPipeline.from_pretrained(folder, dtype=dtype, **models)
        if layers := lora_weights(place):
            pipeline.load_lora_weights(layers.parent, weight_name=layers.name)
        return pipeline
    except Exception as error:  # its type depends on the library that reads the broken file
        reason = one_line(error) or type(error).__name__
        raise ValueError(f"model ({source}) cannot be loaded: {reason[:300]}") from None


def _check_source(source: str) -> None:
    """Raise ValueError for a source that cannot be a pipeline."""
    check_not_removed(source)
    if source in BUNDLED:
        raise ValueError(
            f"model ({source}) is a tokenizer, not a pipeline: choose one of {', '.join(BUNDLED_PIPELINES)}"
        )
    folder = Path(source)
    if folder.is_file():
        raise ValueError(f"model ({source}) is a file: give the folder of a pipeline")
    if folder.is_dir() and not (folder / "model_index.json").is_file():
        raise ValueError(f"model ({source}) has no model_index.json: give a folder that a pipeline was saved to")
    if not folder.exists() and source.count("/") != 1:
        raise ValueError(
            f"model ({source}) is neither a shipped pipeline, nor a folder, nor a Hub id (user/name): "
            f"{did_you_mean(source, BUNDLED_PIPELINES)}"
        )


def _load_whole(folder: Path, name: str, entry, dtype: torch.dtype) -> nn.Module | None:
    """A model of the pipeline, or None if `entry` of model_index.json is not a model.

    The libraries fill missing weights with random values and load tokenizers without a vocabulary, and only log it. Here
    both are errors.
    """
    if not isinstance(entry, list) or entry[0] not in _LIBRARIES:
        return None
    if not (folder / name).is_dir():
        raise ValueError(f"it has no folder {name}")
    if "Tokenizer" in entry[1] and not any((folder / name / file).is_file() for file in _VOCABULARIES):
        raise ValueError(f"its {name} has no vocabulary ({' or '.join(_VOCABULARIES)})")
    kind = getattr(importlib.import_module(entry[0]), entry[1])
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        return None
    check_limits(read_json(folder / name / "config.json", f"{name}/config.json"))
    model, report = kind.from_pretrained(folder, subfolder=name, dtype=dtype, output_loading_info=True)
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"the weights of {name} lack {missing[0]}" + f" and {len(missing) - 1} more" * (len(missing) > 1)
        )
    return model.eval()
