"""Read a data set that was encoded once: tokens or latents of images with their captions, at any position.

`training/cache_latents.py` writes it, and `shards.py` describes the files. Shards are mapped into memory: opening a cache
reads only the index, worker processes share the memory, and only the samples that are used are read from disk.
"""

import itertools
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from pqdiff.data.cache.bit_packing import packed_bytes, unpack_batch
from pqdiff.data.cache.shards import CROP_FIELDS, EMPTY_TEXT, INDEX, Shard, map_tensors, read_index, text_at


class LatentCache(Dataset):
    """Samples of a latent cache by number.

    Args:
        folder: what `LatentCacheWriter` wrote.

    Attributes:
        kind: "indices" or "latents".
        fingerprint: content hash of the autoencoder.
        autoencoder: its name, for people.
        codebook_sizes: number of values of each of the G tokens; None for kind "latents".
        resolution: side in pixels of the images, or of the square among the buckets.
        has_text_embeddings: whether samples have text embeddings.
        settings: everything that the index says about how the cache was made.

    Raises:
        ValueError: naming the folder or file, if there is no cache, it is incomplete, or a shard is damaged.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.settings, self.shards, complete = read_index(self.folder)
        if not complete:
            raise ValueError(f"{folder}: is not complete; run the command that made it again to finish it")
        self.kind = self.settings["kind"]
        self.fingerprint = self.settings["autoencoder"]["fingerprint"]
        self.autoencoder = self.settings["autoencoder"]["name"]
        self.codebook_sizes = tuple(self.settings["codebook_sizes"]) if self.kind == "indices" else None
        self.resolution = self.settings["resolution"]
        self.has_text_embeddings = self.settings["text_embeddings"] is not None
        self._starts = np.cumsum([0, *(shard.samples for shard in self.shards)])
        self._mapped: dict[int, dict[str, np.ndarray]] = {}

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_mapped": {}}  # another process maps the files itself

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Spatial shape `(h, w)` of every sample."""
        return [shard.shape for shard in self.shards for _ in range(shard.samples)]

    @property
    def empty_text_embedding(self) -> torch.Tensor | None:
        """Embedding fp32 `(T, D)` of the empty prompt, or None if samples have no embeddings."""
        if not self.has_text_embeddings:
            return None
        tensors = map_tensors(self.folder / EMPTY_TEXT)
        if list(getattr(tensors.get("text_embedding"), "shape", ())) != self.settings["text_embeddings"]:
            raise ValueError(f"{self.folder / EMPTY_TEXT}: does not hold the text_embedding that {INDEX} lists")
        return torch.from_numpy(tensors["text_embedding"].astype(np.float32))

    def __getitem__(self, index: int) -> dict:
        """`indices` int64 `(G, h, w)` or `latents` fp32 `(C, h, w)`; `caption` (the first one), all `captions`, `name`,
        `item`, `crop` (the fields of `Crop`) and, if there are any, `text_embeddings` fp32 `(T, D)` of the first
        caption."""
        batch = self.get_batch([index])
        single = {"caption": "captions", "name": "names", "item": "items", "crop": "crops"}
        sample = {name: batch[names][0] for name, names in single.items()}
        sample |= {name: values[0] for name, values in batch.items() if name not in single.values()}
        (number,), (row,) = (part.tolist() for part in self._locate([index]))
        tensors = self._shard(number)
        begin = tensors["row_ends"][row - 1] if row else 0
        rows = tensors["caption_rows"][begin : tensors["row_ends"][row]].tolist()
        texts = (text_at(tensors["captions"], tensors["caption_ends"], caption) for caption in rows)
        return sample | {"captions": tuple(texts)}

    def get_batch(self, indices: list[int], choices: list[float] | None = None) -> dict:
        """Several samples of one spatial shape, unpacked together.

        Args:
            indices: numbers of the samples, in any order.
            choices: numbers in [0, 1), one for each sample, that choose one of its captions; None takes the first ones.

        Returns:
            `indices` int64 `(B, G, h, w)` or `latents` fp32 `(B, C, h, w)`; lists `captions`, `names`, `items` and
            `crops`; and, if there are any, `text_embeddings` fp32 `(B, T, D)`.

        Raises:
            IndexError: if a number is out of range.
            ValueError: if shapes differ, or a shard is damaged.
        """
        numbers, rows = self._locate(indices)
        shapes = {self.shards[number].shape for number in numbers.tolist()}
        if len(shapes) != 1:
            raise ValueError(f"a batch must have one shape, got {sorted(shapes)}; group samples by `shapes`")
        content = self._gather("codes" if self.kind == "indices" else "latents", numbers, rows)
        if self.kind == "indices":
            shape = (len(self.codebook_sizes), *next(iter(shapes)))
            try:
                batch = {"indices": torch.from_numpy(unpack_batch(content, shape, self.codebook_sizes))}
            except ValueError as error:
                raise ValueError(f"{self.folder}: is damaged ({error})") from None
        else:
            batch = {"latents": torch.from_numpy(content.astype(np.float32))}
        captions = self._choose_captions(numbers, rows, choices)
        if self.has_text_embeddings:
            embeddings = self._gather("text_embeddings", numbers, captions)
            batch["text_embeddings"] = torch.from_numpy(embeddings.astype(np.float32))
        batch["captions"] = self._texts("captions", "caption_ends", numbers, captions)
        batch["names"] = self._texts("names", "name_ends", numbers, rows)
        batch["items"] = self._gather("items", numbers, rows).tolist()
        crops = self._gather("crops", numbers, rows).tolist()
        return batch | {"crops": [dict(zip(CROP_FIELDS, crop, strict=True)) for crop in crops]}

    def _locate(self, indices: list[int]) -> tuple[np.ndarray, np.ndarray]:
        """For each sample the number of its shard and its row there."""
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size == 0 or indices.min() < 0 or indices.max() >= len(self):
            raise IndexError(f"samples must be in [0, {len(self)}), got {indices.tolist()[:8]}")
        numbers = np.searchsorted(self._starts, indices, side="right") - 1
        return numbers, indices - self._starts[numbers]

    def _gather(self, name: str, numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Rows of a tensor, each from its own shard, in the given order."""
        if (numbers == numbers[0]).all():
            return self._shard(int(numbers[0]))[name][rows]
        result = None
        for number in np.unique(numbers).tolist():
            here = numbers == number
            values = self._shard(number)[name][rows[here]]
            if result is None:
                result = np.empty((len(rows), *values.shape[1:]), values.dtype)
            result[here] = values
        return result

    def _choose_captions(self, numbers: np.ndarray, rows: np.ndarray, choices: list[float] | None) -> np.ndarray:
        """For each sample the row of one of its captions in its shard."""
        ends = self._gather("row_ends", numbers, rows)
        begins = np.where(rows > 0, self._gather("row_ends", numbers, np.maximum(rows - 1, 0)), 0)
        places = begins + ((ends - begins) * np.asarray(choices if choices is not None else 0.0)).astype(np.int64)
        return self._gather("caption_rows", numbers, places)

    def _texts(self, name: str, ends: str, numbers: np.ndarray, rows: np.ndarray) -> list[str]:
        shards = [self._shard(number) for number in numbers.tolist()]
        return [text_at(shard[name], shard[ends], row) for shard, row in zip(shards, rows.tolist(), strict=True)]

    def _shard(self, number: int) -> dict[str, np.ndarray]:
        if number not in self._mapped:
            shard = self.shards[number]
            tensors = map_tensors(self.folder / shard.file)
            self._check(shard, tensors)
            self._mapped[number] = tensors
        return self._mapped[number]

    def _check(self, shard: Shard, tensors: dict[str, np.ndarray]) -> None:
        """ValueError unless the tensors are those of as many samples as the index lists, and point at each other."""
        sizes = {name: tensor.size for name, tensor in tensors.items()}
        count, captions, rows = shard.samples, sizes.get("caption_ends"), sizes.get("caption_rows")
        kinds = {name: (np.int64, (count,)) for name in ("items", "name_ends", "row_ends")}
        kinds |= {"caption_ends": (np.int64, (captions,)), "caption_rows": (np.int64, (rows,))}
        kinds |= {name: (np.uint8, (sizes.get(name),)) for name in ("names", "captions")}
        kinds["crops"] = (np.int32, (count, len(CROP_FIELDS)))
        if self.kind == "indices":
            packed = packed_bytes((len(self.codebook_sizes), *shard.shape), self.codebook_sizes)
            kinds["codes"] = (np.uint8, (count, packed))
        else:
            kinds["latents"] = (np.float16, (count, self.settings["channels"], *shard.shape))
        if self.has_text_embeddings:
            kinds["text_embeddings"] = (np.float16, (captions, *self.settings["text_embeddings"]))
        found = {name: (tensors[name].dtype, tensors[name].shape) for name in kinds if name in tensors}
        wrong = [name for name, kind in kinds.items() if found.get(name) != kind]
        ends = {"name_ends": "names", "caption_ends": "captions", "row_ends": "caption_rows"}
        for name, texts in ends.items() if not wrong else ():
            values = [0, *tensors[name].tolist(), len(tensors[texts])]
            if any(end < begin for begin, end in itertools.pairwise(values)):
                wrong.append(name)
        if not wrong and not 0 <= tensors["caption_rows"].min() <= tensors["caption_rows"].max() < captions:
            wrong.append("caption_rows")
        if wrong:
            raise ValueError(
                f"{self.folder / shard.file}: does not hold the {shard.samples} {wrong[0]} that {INDEX} lists; "
                "cache the data set again into a new folder"
            )
