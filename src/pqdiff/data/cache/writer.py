"""Write a latent cache shard by shard, and continue where an interrupted run stopped."""

import json
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
        self.done: set[int] = set()  # in shards
        self.pending: set[int] = set()  # in memory
        self.complete = False
        self._open()
        self._buffers: dict[tuple[int, int], list[dict]] = defaultdict(list)
        self._bytes: dict[tuple[int, int], int] = defaultdict(int)
        if empty_text_embedding is not None:
            write_tensors(self.folder / EMPTY_TEXT, {"text_embedding": _half(empty_text_embedding, "text embedding")})

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for leftover in [*self.folder.glob(".shard-*"), *self.folder.glob(".index-*"), *self.folder.glob(".empty_*")]:
            leftover.unlink()  # temporary files of a run that was killed
        if not (self.folder / INDEX).exists():
            if any(self.folder.iterdir()):
                raise ValueError(f"{self.folder}: is neither empty nor a latent cache; choose another folder")
            write_index(self.folder, self.settings, [], complete=False)
            return
        settings, self.shards, self.complete = read_index(self.folder)
        for name, value in _flat(self.settings).items():
            found = _flat(settings).get(name)
            if (
                found != value and name != "autoencoder.name"
            ):  # a model may get another name, but not another fingerprint
                raise ValueError(
                    f"{self.folder}: holds a cache with {name} {found!r}, not {value!r}; "
                    "choose another folder or the same settings"
                )
        for shard in self.shards:
            self.done.update(map_tensors(self.folder / shard.file)["items"].tolist())

    @property
    def num_items_done(self) -> int:
        """Number of source images in complete shards."""
        return len(self.done)

    @property
    def next_item(self) -> int:
        """First source image that is not in a complete shard: a stream may be started there."""
        item = 0
        while item in self.done:
            item += 1
        return item

    def is_done(self, item: int) -> bool:
        """Whether source image `item` is in a complete shard."""
        return item in self.done

    def add(self, samples: list[dict]) -> None:
        """Add all samples of one or more source images.

        Args:
            samples: each with `item` (number of the source image), `indices` `(G, h, w)` or `latents` `(C, h, w)`,
                `caption`, `name`, `crop` (a `Crop`), and `text_embedding` `(T, D)` if the writer has an embedding of the
                empty prompt.

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
            text = sample.get("text_embedding")
            found = None if text is None else list(text.shape)
            if found != self.settings["text_embeddings"]:
                raise ValueError(
                    f"{sample['name']}: text_embedding has shape {found}, but that of the empty prompt has "
                    f"{self.settings['text_embeddings']}; give both with the same shape, or neither"
                )
            row = {"item": int(sample["item"]), "content": content, "crop": astuple(sample["crop"])}
            row |= {"name": sample["name"], "caption": sample["caption"], "text_bytes": 0}
            if text is not None:
                row["text"] = _half(text, f"text embedding of {sample['name']}")
                row["text_bytes"] = row["text"].nbytes
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
        captions = list(dict.fromkeys(row["caption"] for row in rows))
        numbers = {caption: number for number, caption in enumerate(captions)}
        tensors = {"codes" if self.kind == "indices" else "latents": np.stack([row["content"] for row in rows])}
        tensors["items"] = np.array([row["item"] for row in rows], np.int64)
        tensors["crops"] = np.array([row["crop"] for row in rows], np.int32)
        tensors["names"], tensors["name_ends"] = pack_texts([row["name"] for row in rows])
        tensors["captions"], tensors["caption_ends"] = pack_texts(captions)
        tensors["caption_rows"] = np.array([numbers[row["caption"]] for row in rows], np.int64)
        if self.settings["text_embeddings"]:
            embeddings = {row["caption"]: row["text"] for row in rows}
            tensors["text_embeddings"] = np.stack([embeddings[caption] for caption in captions])
        shard = Shard(f"shard-{len(self.shards):05d}.safetensors", len(rows), shape)
        write_tensors(self.folder / shard.file, tensors)
        self.shards.append(shard)
        items = {row["item"] for row in rows}
        self.done |= items
        self.pending -= items
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
        if kind is None:
            self.close()
        elif issubclass(kind, (KeyboardInterrupt, ValueError)):
            self.flush()


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
