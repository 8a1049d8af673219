"""Write a latent cache shard by shard, and continue where an interrupted run stopped."""

import json
import re
from collections import defaultdict
from dataclasses import astuple
from pathlib import Path

import numpy as np
import torch

from pqdiff.data.cache.bit_packing import pack_batch
from pqdiff.data.cache.shards import (
    EMPTY_TEXT,
    INDEX,
    KINDS,
    Shard,
    map_tensors,
    pack_texts,
    read_index,
    write_index,
    write_tensors,
)
from pqdiff.data.folder_lock import lock_folder

_TEMPORARY = re.compile(r"\.pqdiff-\w{8}\.(json|safetensors)")  # see `atomic_file`
_MOST_BUFFERED = 512 * 2**20  # bytes of samples kept in memory, all shapes together


class LatentCacheWriter:
    """A latent cache that grows by whole source images ("items").

    All samples of an image (crops, mirror images) have one spatial shape and are written together, so an interrupted run
    leaves no image half done. As a context manager it also saves what it has when it is interrupted.

    Args:
        folder: a new folder, or one with a cache of the same settings, which is then continued.
        kind: "indices" (tokens) or "latents" (fp16).
        autoencoder_name: name of the autoencoder, for people.
        fingerprint: content hash of the autoencoder (`pqdiff.models.fingerprint`).
        codebook_sizes: number of values of each of the G tokens, for kind "indices".
        channels: number of latent channels, for kind "latents".
        resolution: side in pixels of the images, or of the square among the buckets.
        samples_per_shard: a shard is written when it holds at least so many samples.
        source: where the images come from, for people.
        recipe: whatever else decides what a sample holds, as JSON; a resumed run must have the same.
        empty_text_embedding: embedding `(T, D)` of the empty prompt, which stands in for dropped captions.

    Raises:
        ValueError: if the folder holds something else, or a cache with other settings; the message names both values.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        kind: str,
        autoencoder_name: str,
        fingerprint: str,
        codebook_sizes: tuple[int, ...] | None = None,
        channels: int | None = None,
        resolution: int,
        samples_per_shard: int = 4096,
        source: str = "",
        recipe: dict | None = None,
        empty_text_embedding: torch.Tensor | None = None,
    ):
        if kind not in KINDS:
            raise ValueError(f"kind ({kind}) must be one of {', '.join(KINDS)}")
        needed, other = (codebook_sizes, channels) if kind == "indices" else (channels, codebook_sizes)
        if needed is None or other is not None:
            raise ValueError(f"kind {kind!r} needs {'codebook_sizes' if kind == 'indices' else 'channels'} alone")
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard ({samples_per_shard}) must be at least 1")
        self.folder, self.kind, self.samples_per_shard = Path(folder), kind, samples_per_shard
        self.codebook_sizes = tuple(codebook_sizes) if codebook_sizes else None
        contents = {"codebook_sizes": list(codebook_sizes)} if codebook_sizes else {"channels": channels}
        self.settings = {
            "kind": kind,
            "autoencoder": {"name": autoencoder_name, "fingerprint": fingerprint},
            **contents,
            "dtype": "packed bits" if kind == "indices" else "float16",
            "resolution": resolution,
            "source": source,
            "recipe": json.loads(json.dumps(recipe or {})),
            "text_embeddings": None if empty_text_embedding is None else list(empty_text_embedding.shape),
        }
        self.shards: list[Shard] = []
        self.done: dict[int, bytes] = {}  # in shards, with the digest of the source
        self.pending: set[int] = set()  # in memory
        self.complete = False
        self._unlock = lock_folder(self.folder, self)
        try:
            self._open()
        except BaseException:
            self._unlock()
            raise
        self._buffers: dict[tuple[int, int], list[dict]] = defaultdict(list)
        self._bytes: dict[tuple[int, int], int] = defaultdict(int)
        if empty_text_embedding is not None:
            write_tensors(self.folder / EMPTY_TEXT, {"text_embedding": _half(empty_text_embedding, "text embedding")})

    def _open(self) -> None:
        if not (self.folder / INDEX).exists():
            if not all(map(_is_ours, self.folder.iterdir())):
                raise ValueError(f"{self.folder}: is neither empty nor a latent cache; choose another folder")
            write_index(self.folder, self.settings, [], complete=False)
        settings, self.shards, self.complete = read_index(self.folder)
        for name, value in _flat(self.settings).items():
            found = _flat(settings).get(name)
            # A model may get another name, but not another fingerprint.
            if found != value and name != "autoencoder.name":
                raise ValueError(
                    f"{self.folder}: holds a cache with {name} {found!r}, not {value!r}; "
                    "choose another folder or the same settings"
                )
        for shard in self.shards:
            tensors = map_tensors(self.folder / shard.file)
            if not {"items", "sources"} <= set(tensors):
                raise ValueError(f"{self.folder / shard.file}: holds no items and sources; choose another folder")
            self.done.update(zip(tensors["items"].tolist(), map(bytes, tensors["sources"]), strict=True))
        for leftover in filter(_is_ours, list(self.folder.iterdir())):
            leftover.unlink()  # of a run that was killed

    @property
    def num_items_done(self) -> int:
        """Number of source images in complete shards."""
        return len(self.done)

    def is_done(self, item: int) -> bool:
        """Whether source image `item` is in a complete shard."""
        return item in self.done

    def add(self, samples: list[dict]) -> None:
        """Add all samples of one or more source images.

        Args:
            samples: each with `item` (number of the source image), `indices` `(G, h, w)` or `latents` `(C, h, w)`,
                `captions` (none stand for one empty text), `name`, `source` (digest of the source image, 16 bytes), `crop`
                (a `Crop`), and `text_embeddings` `(captions, T, D)` if the writer has an embedding of the empty prompt.

        Raises:
            ValueError: if an image is in the cache already, its samples differ in shape, tokens are out of range, or
                latents are not finite in fp16. Nothing is added then.
        """
        shapes: dict[int, tuple[int, int]] = {}
        groups: dict[tuple[int, int], list[dict]] = defaultdict(list)
        for sample in samples:
            item, shape = int(sample["item"]), tuple(sample[self.kind].shape[1:])
            if item in self.done or item in self.pending or shapes.setdefault(item, shape) != shape:
                raise ValueError(f"item {item} ({sample['name']}): added before, or with samples of several shapes")
            groups[shape].append(sample)
        rows = {shape: self._rows(group) for shape, group in groups.items()}  # all of them are right: keep them
        for shape, new in rows.items():
            self._buffers[shape] += new
            self._bytes[shape] += sum(row["content"].nbytes + row["text_bytes"] for row in new)
        self.pending.update(shapes)
        for shape in groups:
            if len(self._buffers[shape]) >= self.samples_per_shard:
                self._flush(shape)
        while sum(self._bytes.values()) > _MOST_BUFFERED:
            self._flush(max(self._bytes, key=self._bytes.get))

    def _rows(self, samples: list[dict]) -> list[dict]:
        """Samples of one shape as shards hold them."""
        rows = []
        for sample, content in zip(samples, self._encode(samples), strict=True):
            captions, texts = tuple(sample["captions"]) or ("",), sample.get("text_embeddings")
            expected = self.settings["text_embeddings"] and [len(captions), *self.settings["text_embeddings"]]
            found = None if texts is None else list(texts.shape)
            if found != expected:
                raise ValueError(
                    f"{sample['name']}: text_embeddings have shape {found}, but {len(captions)} captions and the embedding "
                    f"of the empty prompt need {expected}"
                )
            row = {"item": int(sample["item"]), "content": content, "crop": astuple(sample["crop"])}
            row |= {"name": sample["name"], "source": sample["source"], "captions": captions, "text_bytes": 0}
            if texts is not None:
                row["texts"] = _half(texts, f"text embeddings of {sample['name']}")
                row["text_bytes"] = row["texts"].nbytes
            rows.append(row)
        return rows

    def _encode(self, samples: list[dict]) -> np.ndarray:
        """Packed bytes `(N, bytes)` or fp16 latents `(N, C, h, w)`."""
        sizes = self.codebook_sizes
        name, expected = ("codebook_sizes", len(sizes)) if sizes else ("channels", self.settings["channels"])
        for sample in samples:
            if len(sample[self.kind]) != expected:
                found = f"{sample['name']}: {self.kind} of shape {tuple(sample[self.kind].shape)}"
                raise ValueError(f"{found} do not fit {name} ({expected})")
        values = torch.stack([torch.as_tensor(sample[self.kind]).detach().cpu() for sample in samples])
        if self.kind == "indices":
            return pack_batch(values.numpy(), self.codebook_sizes)
        return _half(values, f"latents of {samples[0]['name']} and the images after it")

    def _flush(self, shape: tuple[int, int]) -> None:
        rows = self._buffers.pop(shape)
        self._bytes.pop(shape)
        captions = list(dict.fromkeys(caption for row in rows for caption in row["captions"]))
        numbers = {caption: number for number, caption in enumerate(captions)}
        tensors = {"codes" if self.kind == "indices" else "latents": np.stack([row["content"] for row in rows])}
        tensors["items"] = np.array([row["item"] for row in rows], np.int64)
        tensors["crops"] = np.array([row["crop"] for row in rows], np.int32)
        tensors["names"], tensors["name_ends"] = pack_texts([row["name"] for row in rows])
        tensors["captions"], tensors["caption_ends"] = pack_texts(captions)
        tensors["sources"] = np.stack([np.frombuffer(row["source"], np.uint8) for row in rows])
        tensors["caption_rows"] = np.array([numbers[text] for row in rows for text in row["captions"]], np.int64)
        tensors["row_ends"] = np.cumsum([len(row["captions"]) for row in rows], dtype=np.int64)
        if self.settings["text_embeddings"]:
            embeddings = {text: half for row in rows for text, half in zip(row["captions"], row["texts"], strict=True)}
            tensors["text_embeddings"] = np.stack([embeddings[caption] for caption in captions])
        shard = Shard(f"shard-{len(self.shards):05d}.safetensors", len(rows), shape)
        write_tensors(self.folder / shard.file, tensors)
        self.shards.append(shard)
        done = {row["item"]: row["source"] for row in rows}
        self.done |= done
        self.pending -= set(done)
        write_index(self.folder, self.settings, self.shards, complete=False)

    def flush(self) -> None:
        """Write all samples that are still in memory; the shards may be small."""
        for shape in list(self._buffers):
            self._flush(shape)

    def close(self) -> None:
        """Write all samples that are still in memory and mark the cache complete.

        Raises:
            ValueError: if the cache holds no sample.
        """
        self.flush()
        if not self.shards:
            raise ValueError(f"{self.folder}: no samples to cache")
        write_index(self.folder, self.settings, self.shards, complete=True)
        self.complete = True

    def __enter__(self) -> "LatentCacheWriter":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                self.close()
            elif issubclass(kind, (KeyboardInterrupt, ValueError)):
                self.flush()
        finally:
            self._unlock()


def _is_ours(path: Path) -> bool:
    """Whether this is the temporary file of a writer that was killed: nothing else is removed."""
    return bool(_TEMPORARY.fullmatch(path.name)) and path.is_file()


def _half(values: torch.Tensor, what: str) -> np.ndarray:
    half = torch.as_tensor(values).detach().to("cpu", torch.float16)
    if not bool(torch.isfinite(half).all()):
        raise ValueError(f"{what}: not finite in half precision")
    return half.numpy()


def _flat(settings: dict, prefix: str = "") -> dict:
    """Nested settings as one dict with dotted names."""
    result = {}
    for name, value in settings.items():
        result |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return result
