"""The files of a latent cache: an index, and shards, which hold samples of one spatial shape as safetensors.

A shard holds, for N samples with M different captions:

    codes            uint8 (N, bytes)      kind "indices": packed tokens (see packing.py)
    latents          fp16 (N, C, h, w)     kind "latents"
    items            int64 (N)             number of the source image
    crops            int32 (N, 9)          the fields of `Crop`, in their order
    names            uint8, with name_ends int64 (N): texts in UTF-8, one after the other, and where each one ends
    captions         uint8, with caption_ends int64 (M)
    caption_rows     int64 (N)             which of the captions the sample has
    text_embeddings  fp16 (M, T, D)        optional

`index.json` is written after each shard, so every shard that it lists is complete.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from pqdiff.data.files import atomic_file
from pqdiff.data.images.crops import Crop

FORMAT, VERSION = "pqdiff-latent-cache", 1
KINDS = ("indices", "latents")
INDEX, EMPTY_TEXT = "index.json", "empty_text.safetensors"
CROP_FIELDS = tuple(Crop.__dataclass_fields__)
_DTYPES = {"U8": np.uint8, "I32": np.int32, "I64": np.int64, "F16": np.float16}


@dataclass(frozen=True)
class Shard:
    """What the index says about one shard: its file, number of samples, and spatial shape `(h, w)`."""

    file: str
    samples: int
    shape: tuple[int, int]


def write_index(folder: Path, index: dict, shards: list[Shard], complete: bool) -> None:
    """Write `index.json`: the settings in `index`, then the shards."""
    document = {"format": FORMAT, "version": VERSION, **index, "complete": complete}
    document["num_samples"] = sum(shard.samples for shard in shards)
    entries = ",\n ".join(json.dumps(vars(shard)) for shard in shards)
    lines = [*(f'"{name}": {json.dumps(value)}' for name, value in document.items()), f'"shards": [\n {entries}]']
    with atomic_file(folder / INDEX) as temporary:
        temporary.write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


def read_index(folder: Path) -> tuple[dict, list[Shard], bool]:
    """Settings, shards, and whether the cache is complete.

    Raises:
        ValueError: naming the folder, if there is no index or it is not of this format.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{folder}: holds no latent cache ({INDEX} is missing); training/cache_latents.py makes one")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("it is not the index of a latent cache")
        if document["version"] != VERSION:
            raise ValueError(f"version {document['version']}, but this pqdiff reads {VERSION}: upgrade it")
        if document["kind"] not in KINDS:
            raise ValueError(f"kind ({document['kind']}) must be one of {', '.join(KINDS)}")
        shards = [
            Shard(str(entry["file"]), int(entry["samples"]), tuple(map(int, entry["shape"])))
            for entry in document["shards"]
        ]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None
    settings = {
        key: value
        for key, value in document.items()
        if key not in ("format", "version", "complete", "num_samples", "shards")
    }
    return settings, shards, bool(document.get("complete"))


def write_tensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Write safetensors; the file appears complete or not at all."""
    with atomic_file(path) as temporary:
        save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, temporary)


def map_tensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a safetensors file as read-only views of mapped memory: nothing is read from disk before it is used.

    Raises:
        ValueError: naming the file, if it is missing, truncated or of another kind.
    """
    try:
        data = np.memmap(path, dtype=np.uint8, mode="r")
        length = int.from_bytes(data[:8].tobytes(), "little")
        header = json.loads(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            content = data[8 + length + begin : 8 + length + end]
            if len(content) != end - begin:
                raise ValueError("truncated")
            tensors[name] = np.frombuffer(content, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return tensors
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, but {INDEX} lists it; cache the data set again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: cannot be read as a shard of latents ({type(error).__name__}: {error})") from None


def pack_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as UTF-8 bytes, one after the other, and int64 positions where each one ends."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(text) for text in encoded], dtype=np.int64)


def text_at(texts: np.ndarray, ends: np.ndarray, number: int) -> str:
    """One of the texts that `pack_texts` packed."""
    begin = ends[number - 1] if number else 0
    return texts[begin : ends[number]].tobytes().decode("utf-8")
