"""Samples of a data set as batches of latents and captions, whether they come as pictures or as a latent cache."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image

from ..data.buckets import bucket_sizes, nearest_bucket
from ..data.captioned import StreamedImages
from ..data.images import normalize, to_tensor
from ..data.latents import LatentCache
from .batches import BatchPlan, Layout, iterate_batches
from .randomness import generator_for


@dataclass(frozen=True)
class Preparation:
    """How a picture and its caption become a sample.

    Args:
        resolution: side in pixels of a square picture.
        multiple: sides are divisible by it.
        buckets: whether other aspect ratios keep their shape, at about the same area; else the center square.
        random_crop: crop anywhere instead of in the center.
        flip: mirror half of the pictures. Captions that speak of left and right forbid it.
        caption_dropout: probability of an empty caption, which guidance needs.
    """

    resolution: int
    multiple: int
    buckets: bool = False
    random_crop: bool = False
    flip: bool = False
    caption_dropout: float = 0.0

    def __post_init__(self):
        if self.resolution % self.multiple:
            raise ValueError(f"resolution ({self.resolution}) must be divisible by {self.multiple}")

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths in pixels that pictures are cut to."""
        square = [(self.resolution, self.resolution)]
        return bucket_sizes(self.resolution, self.multiple) if self.buckets else square

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that a picture is cut to."""
        return self.sizes[0] if len(self.sizes) == 1 else nearest_bucket(width, height, self.sizes)

    def batch(self, items: list[tuple[Image.Image, tuple[str, ...]]], generators: list[torch.Generator]) -> dict:
        """Batch of `pixels` (B, 3, H, W), uint8, and `captions`, of pictures that are cut to the same size.

        Of a picture's captions one is drawn; without any it is the empty text.
        """
        pixels, captions = [], []
        for (image, texts), generator in zip(items, generators, strict=True):
            dropout, mirror, left, top, choice = torch.rand(5, generator=generator).tolist()
            place = (left, top) if self.random_crop else (0.5, 0.5)
            caption = texts[int(choice * len(texts))] if texts else ""
            picture = to_tensor(cover(image, self.size_for(*image.size), place))
            pixels.append(picture.flip(2) if self.flip and mirror < 0.5 else picture)
            captions.append("" if dropout < self.caption_dropout else caption)
        return {"pixels": torch.stack(pixels), "captions": captions}


class PictureSamples:
    """Captioned pictures by number: items hold `image` (PIL) and `captions`, or one `caption`; `size_of(i)` is (width,
    height)."""

    def __init__(self, pictures, preparation: Preparation):
        self.pictures, self.preparation = pictures, preparation

    def __len__(self) -> int:
        return len(self.pictures)

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """Micro-batches of the steps from `start` to before `stop`, a list per step."""
        sizes = self.preparation.sizes
        if len(sizes) == 1:
            keys = sizes * len(self)
        else:
            keys = [self.preparation.size_for(*self.pictures.size_of(i)) for i in range(len(self))]
        plan = BatchPlan(keys, layout.global_batch_size, seed)
        return iterate_batches(plan, layout, self._load, seed, start, stop, workers)

    def _load(self, samples: list[int], generators: list[torch.Generator]) -> dict:
        items = [self.pictures[i] for i in samples]
        items = [(item["image"], item.get("captions", (item["caption"],))) for item in items]
        return self.preparation.batch(items, generators)


class StreamedSamples:
    """Captioned pictures as they come, for data sets that are too large to be opened by number.

    Every rank reads the same rows, shuffled within a buffer, and decodes only its own: the batches do not depend on the
    number of processes. A resumed run reads the rows again from the start, without decoding them. With `workers`, so many
    threads decode ahead: decoders let go of Python's lock.
    """

    _BUFFER = 1000  # rows to shuffle among

    def __init__(self, stream: StreamedImages, preparation: Preparation):
        self.stream, self.preparation = stream, preparation

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """Micro-batches of the steps from `start` to before `stop`, a list per step."""
        groups = self._global_batches(layout.global_batch_size, seed, start, stop)
        if not workers:
            for step, rows in groups:
                yield [self._load(rows, layout.slots(m), seed, step) for m in range(layout.accumulation)]
            return
        with ThreadPoolExecutor(workers) as pool:
            ahead = deque()
            for step, rows in groups:
                slots = map(layout.slots, range(layout.accumulation))
                ahead.append([pool.submit(self._load, rows, each, seed, step) for each in slots])
                if len(ahead) > workers:
                    yield [loading.result() for loading in ahead.popleft()]
            while ahead:
                yield [loading.result() for loading in ahead.popleft()]

    def _global_batches(self, size: int, seed: int, start: int, stop: int) -> Iterator[tuple[int, list]]:
        """Every step from `start` to before `stop`, with its rows, not decoded."""
        if start >= stop:
            return  # without reading
        waiting: dict[tuple[int, int], list] = {}
        step = epoch = 0
        while step < stop:
            found = False
            for row in self.stream.shuffle(seed + epoch, self._BUFFER):
                found = True
                rows = waiting.setdefault(self.preparation.size_for(*row.size), [])
                rows.append(row)
                if len(rows) < size:
                    continue
                waiting[self.preparation.size_for(*row.size)] = []
                if step >= start:
                    yield step, rows
                step += 1
                if step == stop:
                    return
            if not found:
                raise ValueError(f"{self.stream.name}: the stream is empty")
            epoch += 1

    def _load(self, rows: list, slots: range, seed: int, step: int) -> dict:
        generators = [generator_for(seed, "sample", step, slot) for slot in slots]
        return self.preparation.batch([(rows[slot].load(), rows[slot].captions) for slot in slots], generators)


class CachedSamples:
    """What `training/cache_latents.py` wrote: no picture is read and no encoder runs.

    Args:
        cache: the cache.
        caption_dropout: probability of an empty caption.
        use_text: whether batches hold the cached text embeddings, if there are any.
    """

    def __init__(self, cache: LatentCache, caption_dropout: float = 0.0, use_text: bool = False):
        self.cache, self.caption_dropout, self.use_text = cache, caption_dropout, use_text

    def __len__(self) -> int:
        return len(self.cache)

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """Micro-batches of the steps from `start` to before `stop`, a list per step."""
        plan = BatchPlan(self.cache.shapes, layout.global_batch_size, seed)
        return iterate_batches(plan, layout, self._load, seed, start, stop, workers)

    def _load(self, samples: list[int], generators: list[torch.Generator]) -> dict:
        batch = self.cache.get_batch(samples)
        dropped = [torch.rand(1, generator=generator).item() < self.caption_dropout for generator in generators]
        batch["captions"] = ["" if drop else text for drop, text in zip(dropped, batch["captions"], strict=True)]
        if not self.use_text:
            batch.pop("text_embeddings", None)
        elif "text_embeddings" in batch and any(dropped):
            batch["text_embeddings"][torch.tensor(dropped)] = self.cache.empty_text_embedding
        return batch


def cover(image: Image.Image, size: tuple[int, int], place: tuple[float, float] = (0.5, 0.5)) -> Image.Image:
    """Smallest version of the picture that covers (height, width), cut at `place`: 0 is left or top, 1 right or bottom."""
    height, width = size
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(scaled, Image.Resampling.LANCZOS)
    left, top = round((scaled[0] - width) * place[0]), round((scaled[1] - height) * place[1])
    return image.crop((left, top, left + width, top + height))


@torch.no_grad()
def latents_of(batch: dict, autoencoder, device: torch.device) -> torch.Tensor:
    """Latents `(B, d, h, w)` of a batch, scaled as diffusion models see them, fp32.

    The most likely latents are taken where the autoencoder has a distribution.
    """
    if "latents" in batch:
        return batch["latents"].to(device, torch.float32)
    if "indices" in batch:
        return autoencoder.latents_from_indices(batch["indices"].to(device)).float()
    images = normalize(batch["pixels"].to(device)).to(autoencoder.dtype)
    shift = getattr(autoencoder.config, "shift_factor", None) or 0.0
    return (autoencoder.encode(images).latent_dist.mode().float() - shift) * autoencoder.config.scaling_factor
