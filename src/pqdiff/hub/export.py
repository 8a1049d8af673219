"""Saves pipelines as folders for the Hub: sharded safetensors in full precision, and beside them in half precision."""

import json
import os
import re
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from pqdiff.hub.check import check_folder
from pqdiff.hub.local_paths import forget_local_paths
from pqdiff.json_text import read_json
from pqdiff.pipelines.lora import refuse_lora_layers

FP16 = "fp16"
_SUFFIX = ".safetensors"
_WEIGHTS = re.compile(rf"(\w+)(\.{FP16})?(-\d+-of-\d+)?\.safetensors(\.index(\.{FP16})?\.json)?")
_LARGEST = torch.finfo(torch.float16).max


def export_for_hub(pipeline, folder: str | Path, *, max_shard_size: int | str = "5GB", fp16: bool = True) -> None:
    """Save `pipeline` in its own precision and, if `fp16`, as `variant="fp16"` too. Other files in `folder` stay.

    The pipeline is not changed, and may have been loaded from the same folder. The half-precision files are written shard
    by shard. Modules that a class keeps in full precision (codebooks, statistics of latents) keep it there as well.

    Args:
        pipeline: a diffusers pipeline.
        folder: folder for it, which is made if it does not exist. Earlier weights of the components in it are removed.
        max_shard_size: bytes, or a text such as "5GB".
        fp16: whether to write files for `from_pretrained(..., variant="fp16", dtype=torch.float16)`.

    Raises:
        ValueError: if a component has LoRA layers, or weights that half precision cannot hold. Then nothing is written.
    """
    folder = Path(folder)
    models = {name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)}
    refuse_lora_layers(pipeline)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        aside = Path(temporary)
        pipeline.save_pretrained(aside, max_shard_size=max_shard_size)
        if fp16:
            for name, model in models.items():
                keep = getattr(model, "_keep_in_fp32_modules", None) or ()
                write_fp16_weights(aside / name, keep)
        forget_local_paths(aside)
        check_folder(aside)
        folder.mkdir(exist_ok=True)
        for entry in sorted(aside.iterdir(), key=lambda entry: entry.is_file()):  # model_index.json last
            if entry.is_file():
                entry.replace(folder / entry.name)
            else:
                _replace_component(entry, folder / entry.name)


def _replace_component(new: Path, folder: Path) -> None:
    """Move the files of a component into its folder, and remove weights of the same name in other shards or precision."""
    folder.mkdir(exist_ok=True)
    stems = {path.name.split(".")[0].split("-0")[0] for path in new.glob(f"*{_SUFFIX}")}
    for path in folder.iterdir():
        if (match := _WEIGHTS.fullmatch(path.name)) and match[1] in stems:
            path.unlink()
    for path in new.iterdir():
        path.replace(folder / path.name)


def write_fp16_weights(folder: Path, keep: list[str] | tuple[str, ...] = ()) -> None:
    """Write a half-precision copy of every full-precision file of weights beside it. Integers stay integers.

    Args:
        folder: folder of one model that `save_pretrained` of diffusers or transformers wrote.
        keep: names of modules whose tensors keep their precision.
    """
    indices = sorted(folder.glob(f"*{_SUFFIX}.index.json"))
    shards: set[str] = set()
    for path in indices:
        index = read_json(path, path.name)
        places = {name: _variant_name(shard) for name, shard in index["weight_map"].items()}
        shards |= set(index["weight_map"].values())
        size = sum(_convert(folder, shard, keep) for shard in sorted(set(index["weight_map"].values())))
        content = {"metadata": {**index.get("metadata", {}), "total_size": size}, "weight_map": places}
        name = path.name.replace(".index.json", f".index.{FP16}.json")
        (folder / name).write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    for path in sorted(folder.glob(f"*{_SUFFIX}")):
        if path.name not in shards and f".{FP16}" not in path.name:
            _convert(folder, path.name, keep)


def _variant_name(name: str) -> str:
    """`model.safetensors` -> `model.fp16.safetensors`, `model-1-of-2.safetensors` -> `model.fp16-1-of-2.safetensors`."""
    stem, dash, shard = name.removesuffix(_SUFFIX).partition("-0")
    return f"{stem}.{FP16}{dash}{shard}{_SUFFIX}"


def _convert(folder: Path, name: str, keep: list[str] | tuple[str, ...]) -> int:
    """Convert one file. Returns the number of bytes of its tensors."""
    tensors = {}
    with safe_open(folder / name, framework="pt") as file:
        metadata = file.metadata()
        for key in sorted(file.keys()):
            tensor = file.get_tensor(key)
            if tensor.is_floating_point() and not set(key.split(".")) & set(keep):
                largest = tensor.abs().max().item() if tensor.numel() else 0.0
                if not largest <= _LARGEST:  # NaN too
                    raise ValueError(
                        f"{key} of {folder.name} reaches {largest:g}, half precision can hold {_LARGEST:g}: "
                        "export with fp16=False"
                    )
                tensor = tensor.half()
            tensors[key] = tensor
    target = folder / _variant_name(name)
    save_file(tensors, target, metadata=metadata)
    os.chmod(target, (folder / name).stat().st_mode)  # safetensors makes files that only their owner can read
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
