"""The files of a latent cache: an index, and shards, which hold samples of one spatial shape as safetensors.

A shard holds, for N samples with M different captions:

    codes            uint8 (N, bytes)      kind "indices": packed tokens (see bit_packing.py)
    latents          fp16 (N, C, h, w)     kind "latents"
    items            int64 (N)             number of the source image
    crops            int32 (N, 9)          the fields of `Crop`, in their order
    names            uint8, with name_ends int64 (N): texts in UTF-8, one after the other, and where each one ends
    sources          uint8 (N, 16)         digest of the source image and its captions, to see whether they have changed
    captions         uint8, with caption_ends int64 (M)
    caption_rows     int64, with row_ends int64 (N): the captions that each sample has, at least one
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
from pqdiff.json_text import parse_json

FORMAT, VERSION = "pqdiff-latent-cache", 2
KINDS = ("indices", "latents")
INDEX, EMPTY_TEXT = "index.json", "empty_text.safetensors"
CROP_FIELDS = tuple(Crop.__dataclass_fields__)
_MOST_HEADER = 10**8  # bytes; safetensors has the same limit
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


def holds_cache(folder: str | Path) -> bool:
    """Whether a folder holds a latent cache, and not photos with an `index.json` of their own."""
    try:
        with (Path(folder) / INDEX).open("rb") as file:
            return FORMAT.encode() in file.read(len(FORMAT) + 50)
    except OSError:
        return False


def read_index(folder: Path) -> tuple[dict, list[Shard], bool]:
    """Settings, shards, and whether the cache is complete.

    Raises:
        ValueError: naming the folder, if there is no index, it is not of this format, or it lists more samples than the
            files can hold.
    """
    path = folder / INDEX
    if not path.is_file():
        raise ValueError(f"{folder}: holds no latent cache ({INDEX} is missing); training/cache_latents.py makes one")
    try:
        document = parse_json(path.read_bytes())
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            raise ValueError("it is not the index of a latent cache")
        if document.get("version") != VERSION:
            raise ValueError(
                f"version {document.get('version')}, but this pqdiff reads {VERSION}: cache the data again"
            )
        for name, is_right in _RULES.items():
            if name not in document or not is_right(document[name]):
                raise ValueError(f"{name} ({document.get(name)!r:.80}) is missing or wrong")
        content = "codebook_sizes" if document["kind"] == "indices" else "channels"
        numbers = document.get(content)
        if isinstance(numbers, list) != (content == "codebook_sizes") or not _are_counts(
            numbers if isinstance(numbers, list) else [numbers]
        ):
            raise ValueError(f"{content} ({numbers!r:.80}) is missing or wrong")
        shards = [_shard(entry) for entry in document["shards"]]
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({' '.join(str(error).split())})") from None
    for shard in shards:
        size = (folder / shard.file).stat().st_size if (folder / shard.file).is_file() else None
        if size is None:
            raise ValueError(f"{folder / shard.file}: no such file, but {INDEX} lists it; cache the data set again")
        if shard.samples * _LEAST_BYTES > size:
            raise ValueError(f"{folder / shard.file}: {size} bytes cannot hold the {shard.samples} samples of {INDEX}")
    others = ("format", "version", "complete", "num_samples", "shards")
    settings = {key: value for key, value in document.items() if key not in others}
    return settings, shards, bool(document.get("complete"))


def _are_counts(values) -> bool:
    return bool(values) and all(type(value) is int and 0 < value < 2**62 for value in values)


def _shard(entry) -> Shard:
    entry = entry if isinstance(entry, dict) else {}
    file, samples, shape = (entry.get(name) for name in ("file", "samples", "shape"))
    if not isinstance(file, str) or file != Path(file).name or file.startswith("."):
        raise ValueError(f"a shard's file ({file!r:.80}) must be a name in the folder of the cache")
    if not _are_counts([samples]) or not isinstance(shape, list) or len(shape) != 2 or not _are_counts(shape):
        raise ValueError(f"samples ({samples!r:.40}) and shape ({shape!r:.40}) of {file} must be positive integers")
    return Shard(file, samples, tuple(shape))


_LEAST_BYTES = 4 * len(CROP_FIELDS) + 8  # of a sample in a shard: its crop and its item
_RULES = {  # of the entries of an index
    "kind": lambda value: value in KINDS,
    "autoencoder": lambda value: (
        isinstance(value, dict) and all(isinstance(value.get(name), str) for name in ("name", "fingerprint"))
    ),
    "resolution": lambda value: _are_counts([value]),
    "recipe": lambda value: isinstance(value, dict),
    "text_embeddings": lambda value: value is None or (isinstance(value, list) and _are_counts(value)),
    "shards": lambda value: isinstance(value, list),
}


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
        if length > min(_MOST_HEADER, len(data) - 8):
            raise ValueError("truncated")
        header = parse_json(data[8 : 8 + length].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            content = data[8 + length + begin : 8 + length + end]
            if begin < 0 or len(content) != end - begin:
                raise ValueError("truncated")
            tensors[name] = np.frombuffer(content, _DTYPES[entry["dtype"]]).reshape(entry["shape"])
        return tensors
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file, but {INDEX} lists it; cache the data set again") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ValueError(f"{path}: cannot be read as a shard of latents ({reason})") from None


def pack_texts(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as UTF-8 bytes, one after the other, and int64 positions where each one ends."""
    encoded = [text.encode("utf-8", "backslashreplace") for text in texts]
    return np.frombuffer(b"".join(encoded), np.uint8), np.cumsum([len(text) for text in encoded], dtype=np.int64)


def text_at(texts: np.ndarray, ends: np.ndarray, number: int) -> str:
    """One of the texts that `pack_texts` packed."""
    begin = ends[number - 1] if number else 0
    return texts[begin : ends[number]].tobytes().decode("utf-8", "replace")
