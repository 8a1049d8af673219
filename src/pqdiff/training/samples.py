"""Captioned samples in batches: from images by number, from a stream of images, or from a cache of latents."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import torch
from PIL import Image

from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.captions.captioned import StreamedImages
from pqdiff.data.images.buckets import bucket_sizes, nearest_bucket
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.training.batches import BatchPlan, Layout, iterate_batches
from pqdiff.training.randomness import generator_for


@dataclass(frozen=True)
class Preparation:
    """How an image and its captions become a sample.

    Args:
        resolution: side in pixels of a square image.
        multiple: sides are divisible by it.
        buckets: keep the aspect ratio, at about the same area; else all images become squares.
        random_crop: crop at a random place instead of the center.
        flip: mirror half of the images. Do not use it if captions speak of left and right.
        caption_dropout: probability of an empty caption, which classifier-free guidance needs.

    Raises:
        ValueError: for a resolution that `multiple` does not divide.
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
        """Heights and widths in pixels of the samples."""
        square = [(self.resolution, self.resolution)]
        return bucket_sizes(self.resolution, self.multiple) if self.buckets else square

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """Height and width in pixels of the sample of an image."""
        return self.sizes[0] if len(self.sizes) == 1 else nearest_bucket(width, height, self.sizes)

    def batch(self, items: list[tuple[Image.Image, tuple[str, ...]]], generators: list[torch.Generator]) -> dict:
        """Batch of `pixels` (B, 3, H, W), uint8, and `captions`, of images that share a size of the sample.

        One of the captions of an image is drawn; an image without captions gets the empty text.

        Args:
            items: images with their captions.
            generators: one on the CPU for each image.
        """
        pixels, captions = [], []
        for (image, texts), generator in zip(items, generators, strict=True):
            dropout, mirror, left, top, choice = torch.rand(5, generator=generator).tolist()
            place = (left, top) if self.random_crop else (0.5, 0.5)
            caption = texts[int(choice * len(texts))] if texts else ""
            cropped = to_tensor(resize_and_crop(image, self.size_for(*image.size), place))
            pixels.append(cropped.flip(2) if self.flip and mirror < 0.5 else cropped)
            captions.append("" if dropout < self.caption_dropout else caption)
        return {"pixels": torch.stack(pixels), "captions": captions}


class ImageSamples:
    """Samples of images that can be read by number.

    Args:
        images: `images[i]` holds `image` (PIL) and `captions`, or one `caption`; `images.size_of(i)` is (width, height).
        preparation: how an image becomes a sample.
    """

    def __init__(self, images, preparation: Preparation):
        self.images, self.preparation, self.notes = images, preparation, []

    def __len__(self) -> int:
        return len(self.images)

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """See `pqdiff.training.batches.Samples`."""
        sizes = self.preparation.sizes
        if len(sizes) == 1:
            keys = sizes * len(self)
        else:
            keys = [self.preparation.size_for(*self.images.size_of(i)) for i in range(len(self))]
        plan = BatchPlan(keys, layout.global_batch_size, seed)
        self.notes += _note_small_buckets(plan.small_buckets(), plan.batch_size)
        return iterate_batches(plan, layout, self._load, seed, start, stop, workers)

    def _load(self, samples: list[int], generators: list[torch.Generator]) -> dict:
        items = [self.images[i] for i in samples]
        items = [(item["image"], item.get("captions", (item["caption"],))) for item in items]
        return self.preparation.batch(items, generators)


class StreamedSamples:
    """Samples of a stream of images, for data sets that are too large to be read by number.

    Every rank reads the same rows, shuffled within a buffer, and decodes only its own rows, so that batches do not depend
    on the number of processes. A resumed run reads the rows again from the start, without decoding them. `workers` is a
    number of threads that decode ahead (decoders release Python's global lock).
    """

    _BUFFER = 1000  # rows of the shuffle buffer

    def __init__(self, stream: StreamedImages, preparation: Preparation):
        self.stream, self.preparation, self.notes = stream, preparation, []

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """See `pqdiff.training.batches.Samples`."""
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
        """Each step from `start` to before `stop` with its rows, which are not decoded."""
        if start >= stop:
            return  # reads nothing
        waiting: dict[tuple[int, int], list] = {}
        filled: set[tuple[int, int]] = set()
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
                filled.add(self.preparation.size_for(*row.size))
                if step >= start:
                    yield step, rows
                step += 1
                if step == stop:
                    return
            if not found:
                raise ValueError(f"{self.stream.name}: the stream is empty")
            if epoch == 0 and (few := {shape: len(rows) for shape, rows in waiting.items() if shape not in filled}):
                shapes = ", ".join(f"{count} of {shape}" for shape, count in few.items())
                self.notes.append(
                    f"buckets with fewer images than a batch of {size}: {shapes}; they are trained on later or never"
                )
            epoch += 1

    def _load(self, rows: list, slots: range, seed: int, step: int) -> dict:
        generators = [generator_for(seed, "sample", step, slot) for slot in slots]
        return self.preparation.batch([(rows[slot].load(), rows[slot].captions) for slot in slots], generators)


class CachedSamples:
    """Samples of a cache that `training/cache_latents.py` wrote: no image is read and no encoder runs.

    Args:
        cache: the opened cache.
        caption_dropout: probability of an empty caption.
        use_text: put the cached text embeddings, if there are any, into batches.
    """

    def __init__(self, cache: LatentCache, caption_dropout: float = 0.0, use_text: bool = False):
        self.cache, self.caption_dropout, self.use_text, self.notes = cache, caption_dropout, use_text, []

    def __len__(self) -> int:
        return len(self.cache)

    def batches(self, layout: Layout, seed: int, start: int, stop: int, workers: int = 0) -> Iterator[list[dict]]:
        """See `pqdiff.training.batches.Samples`."""
        plan = BatchPlan(self.cache.shapes, layout.global_batch_size, seed)
        self.notes += _note_small_buckets(plan.small_buckets(), plan.batch_size)
        return iterate_batches(plan, layout, self._load, seed, start, stop, workers)

    def _load(self, samples: list[int], generators: list[torch.Generator]) -> dict:
        draws = torch.stack([torch.rand(2, generator=generator) for generator in generators])
        batch = self.cache.get_batch(samples, draws[:, 1].tolist())
        dropped = (draws[:, 0] < self.caption_dropout).tolist()
        batch["captions"] = ["" if drop else text for drop, text in zip(dropped, batch["captions"], strict=True)]
        if not self.use_text:
            batch.pop("text_embeddings", None)
        elif "text_embeddings" in batch and any(dropped):
            batch["text_embeddings"][torch.tensor(dropped)] = self.cache.empty_text_embedding
        return batch


def _note_small_buckets(sizes: dict, batch_size: int) -> list[str]:
    shapes = ", ".join(f"{count} of {shape}" for shape, count in sizes.items())
    text = f"buckets with fewer images than a batch of {batch_size}: {shapes}; they are repeated, and so weigh more"
    return [text] if sizes else []


@torch.no_grad()
def latents_of(batch: dict, autoencoder, device: torch.device) -> torch.Tensor:
    """Latents `(B, d, h, w)` of a batch, fp32, scaled as diffusion models see them.

    If the autoencoder gives a distribution, its mode is taken.

    Args:
        batch: with `latents`, `indices`, or `pixels` in uint8.
        autoencoder: `AutoencoderPQ` or `AutoencoderKL`.
        device: where the autoencoder is.
    """
    if "latents" in batch:
        return batch["latents"].to(device, torch.float32)
    if "indices" in batch:
        return autoencoder.latents_from_indices(batch["indices"].to(device)).float()
    images = normalize(batch["pixels"].to(device)).to(autoencoder.dtype)
    shift = getattr(autoencoder.config, "shift_factor", None) or 0.0
    return (autoencoder.encode(images).latent_dist.mode().float() - shift) * autoencoder.config.scaling_factor
