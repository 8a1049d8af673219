"""Checks a folder before it goes to the Hub. It reads configurations and headers, and loads no model."""

import re
from pathlib import Path

from huggingface_hub import ModelCard
from safetensors import SafetensorError, safe_open

from pqdiff.clean_text import one_line
from pqdiff.hub.allow_list import split
from pqdiff.json_text import read_json

_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors")
_VOCABULARY = ("tokenizer.json", "vocab.*", "*.model")


def check_folder(folder: str | Path) -> tuple[list[str], list[str]]:
    """Files of a model or pipeline folder that go to the Hub, and those that do not.

    Only what is on the list of `pqdiff.hub.allow_list` goes. Links are not followed out of the folder.

    Args:
        folder: folder that `save_pretrained` of an `AutoencoderPQ` or of a pipeline wrote. It may hold other files too.

    Returns:
        Relative paths of the files that go to the Hub, sorted, and of the files and whole folders that do not.

    Raises:
        ValueError: in one line that names the folder, the file and the fault: a link leads out of it, a component of
            `model_index.json` has no configuration or weights, a file of weights is damaged, cut short or not in its
            index, or the card cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"folder ({folder}) {'is a file' if folder.exists() else 'does not exist'}: give a folder")
    try:
        components = _components(folder)
        files, left_out = split(folder, [prefix[:-1] for prefix, _, _ in components])
        for name, path, class_name in components:
            _check_component(name, path, class_name)
        for file in files:
            if file.endswith(".safetensors"):
                _tensor_names(folder / file, file)
        if "README.md" in files:
            _check_card(folder / "README.md")
    except ValueError as error:
        raise ValueError(f"folder ({folder}) cannot be pushed: {error}") from None
    return files, left_out


def _components(folder: Path) -> list[tuple[str, Path, str]]:
    """Prefix of names, folder and class of every component. The folder of a model has one component, the model."""
    if (folder / "model_index.json").is_file():
        index = read_json(folder / "model_index.json", "model_index.json")
        pairs = {
            name: pair
            for name, pair in index.items()
            if not name.startswith("_") and isinstance(pair, list) and len(pair) == 2 and pair != [None, None]
        }
        if not pairs:
            raise ValueError("model_index.json names no component")
        for name in pairs:
            if Path(name).name != name:
                raise ValueError(f"model_index.json names {name!r}, which is no folder of the pipeline")
        return [(f"{name}/", folder / name, str(pair[1])) for name, pair in pairs.items()]
    if not (folder / "config.json").is_file():
        empty = not any(folder.iterdir())
        raise ValueError(
            f"it {'is empty' if empty else 'has neither model_index.json nor config.json'}: give a folder that "
            "save_pretrained wrote"
        )
    class_name = read_json(folder / "config.json", "config.json").get("_class_name")
    if not isinstance(class_name, str):
        raise ValueError("config.json names no class (_class_name): it is not a model of diffusers")
    return [("", folder, class_name)]


def _check_component(prefix: str, folder: Path, class_name: str) -> None:
    if not folder.is_dir():
        raise ValueError(f"model_index.json names {prefix[:-1]} ({class_name}), but there is no folder {prefix}")
    weights = sorted(path.name for path in folder.glob("*.safetensors"))
    pickles = sorted(path.name for path in folder.glob("*.bin"))
    if (folder / "config.json").is_file() or weights or pickles:
        _check_model(prefix, folder, class_name, weights, pickles)
    elif not any(folder.glob("*_config.json")):
        raise ValueError(f"{prefix} ({class_name}) has no configuration")
    elif "Tokenizer" in class_name and not any(any(folder.glob(pattern)) for pattern in _VOCABULARY):
        raise ValueError(f"{prefix} ({class_name}) has no vocabulary ({', '.join(_VOCABULARY)})")


def _check_model(prefix: str, folder: Path, class_name: str, weights: list[str], pickles: list[str]) -> None:
    saved_as = read_json(folder / "config.json", f"{prefix}config.json").get("_class_name", class_name)
    if saved_as != class_name:
        raise ValueError(f"{prefix}config.json is of a {saved_as}, but model_index.json names a {class_name}")
    found = [name for name in _WEIGHTS if name in weights or (folder / f"{name}.index.json").is_file()]
    if not found:
        only = weights or pickles
        fix = f"; {', '.join(only)} alone is not enough: save the model as full safetensors" if only else ""
        raise ValueError(f"{prefix} ({class_name}) has no weights ({' or '.join(_WEIGHTS)}){fix}")
    for name in found:
        if name in weights and (folder / f"{name}.index.json").is_file():
            raise ValueError(f"{prefix} has both {name} and an index of shards: remove the older of the two")
    indexed: set[str] = set()
    for path in sorted(folder.glob("*.safetensors.index*.json")):
        indexed |= _check_index(path, prefix)
    for name in weights:
        if _SHARD.search(name) and name not in indexed:
            raise ValueError(f"{prefix}{name} is a shard that no index names: remove it, or save the model again")


def _check_index(path: Path, prefix: str) -> set[str]:
    """Names of the shards of an index. They must hold exactly the tensors that the index assigns to them."""
    places = read_json(path, prefix + path.name).get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(shard, str) for shard in places.values()):
        raise ValueError(f"{prefix}{path.name} has no weight_map")
    for shard in sorted(set(places.values())):
        promised = {name for name, place in places.items() if place == shard}
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise ValueError(f"{prefix}{path.name} names {shard}, which does not exist")
        differing = promised ^ _tensor_names(path.parent / shard, prefix + shard)
        if differing:
            raise ValueError(f"{prefix}{shard} and {path.name} disagree about {sorted(differing)[0]}")
    return set(places.values())


def _tensor_names(path: Path, name: str) -> set[str]:
    """Names of the tensors in a file, whose header must describe every byte of it."""
    try:
        with safe_open(path, framework="numpy") as file:
            return set(file.keys())
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{name} is damaged or cut short ({one_line(error)})") from None


def _check_card(path: Path) -> None:
    try:
        ModelCard.load(path)
    except Exception as error:  # its type depends on the YAML library
        raise ValueError(f"README.md has no valid metadata ({one_line(error)[:200]})") from None
