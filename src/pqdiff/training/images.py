"""Data of autoencoders: crops of images at any scale, mirrored or not, and images that are not trained on."""

import argparse
import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from pqdiff.data.captions.captioned import SCENES, CaptionedImages, StreamedImages, open_captioned
from pqdiff.data.images.crops import crop_and_resize, resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.hub.local_paths import public_name
from pqdiff.training.options import Options
from pqdiff.training.samples import ImageSamples, StreamedSamples

CROPS = ("random", "center", "squash")


def add_image_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ImageOptions`, apart from `--seed` and `--validation_images`, which other groups have."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="folder of images, Hub id, or `scenes`; captions are not needed")
    data.add_argument("--split", default="train", help="split of a Hub data set")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as a stream")
    data.add_argument("--image_column", default=None, help="default: the first column of images")
    data.add_argument("--num_scenes", type=int, default=100_000, help="number of scenes with --dataset scenes")
    data.add_argument("--resolution", type=int, default=256, help="side of the training crops in pixels")
    data.add_argument(
        "--crop", choices=CROPS, default="random", help="squash: the whole image, its aspect ratio not kept"
    )
    data.add_argument(
        "--min_crop_scale",
        type=float,
        default=1.0,
        help="with --crop random: smallest side of a crop, as a part of the image's shorter side",
    )
    data.add_argument("--random_flip", action="store_true", help="mirror half of the images")
    data.add_argument("--hold_out", type=int, default=0, help="do not train on 1 of so many images; 0: train on all")
    data.add_argument("--validation_dataset", help="default: what --hold_out left out, else no validation")
    data.add_argument("--validation_split", default="train", help="split of a Hub data set, or a subfolder")


@dataclass(frozen=True)
class ImageOptions(Options):
    """Which images an autoencoder is trained and validated on, and how they are cut.

    Attributes:
        dataset: folder of images, Hub id, or `scenes`.
        split: split of a Hub data set.
        streaming: read a Hub data set as a stream.
        image_column: column of images; None for the first one.
        num_scenes: number of generated scenes.
        resolution, crop, min_crop_scale, random_flip: as in `CropPreparation`.
        hold_out: 1 of so many images is not trained on, chosen by a hash of its name; 0 to train on all.
        validation_dataset: images to validate on; None for those that `hold_out` left out.
        validation_split: split of a Hub data set, or a subfolder.
        validation_images: number of generated scenes to validate on.
        seed: seed of generated scenes; those to validate on have the next one.
    """

    dataset: str | None
    split: str = "train"
    streaming: bool = False
    image_column: str | None = None
    num_scenes: int = 100_000
    resolution: int = 256
    crop: str = "random"
    min_crop_scale: float = 1.0
    random_flip: bool = False
    hold_out: int = 0
    validation_dataset: str | None = None
    validation_split: str = "train"
    validation_images: int = 64
    seed: int = 0

    @property
    def name(self) -> str:
        """Name of the training data, for a card."""
        return public_name(self.dataset)

    @property
    def validation_name(self) -> str:
        """Name of the validation data, for a card; empty if there is none."""
        if self.validation_dataset:
            return public_name(self.validation_dataset)
        return f"1 of {self.hold_out} of {self.name}, not trained on" if self.hold_out else ""


@dataclass(frozen=True)
class CropPreparation:
    """How an image becomes a square sample.

    Args:
        resolution: side in pixels.
        multiple: sides are divisible by it.
        crop: `random` place, `center`, or `squash` to a square.
        min_crop_scale: smallest side of a random crop as a part of the image's shorter side, in [0, 1]. Crops are never
            smaller than `resolution` if the image is not, so that no crop is enlarged without need.
        flip: mirror half of the images.

    Raises:
        ValueError: for a resolution that `multiple` does not divide, or numbers out of range.
    """

    resolution: int
    multiple: int
    crop: str = "random"
    min_crop_scale: float = 1.0
    flip: bool = False

    def __post_init__(self):
        if self.resolution < 1 or self.resolution % self.multiple:
            raise ValueError(f"resolution ({self.resolution}) must be positive and divisible by {self.multiple}")
        if self.crop not in CROPS:
            raise ValueError(f"crop ({self.crop!r}) must be one of {', '.join(CROPS)}")
        if not 0 <= self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale ({self.min_crop_scale}) must be between 0 and 1")

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """Heights and widths in pixels of the samples."""
        return [(self.resolution, self.resolution)]

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """Height and width in pixels of the sample of an image."""
        return self.sizes[0]

    def batch(self, items: list[tuple[Image.Image, str]], generators: list[torch.Generator]) -> dict:
        """Batch of `pixels` (B, 3, resolution, resolution), uint8; captions are not used."""
        pairs = zip(items, generators, strict=True)
        return {"pixels": torch.stack([self.sample(image, generator) for (image, _), generator in pairs])}

    def sample(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """One sample `(3, resolution, resolution)`, uint8. The same state of the generator gives the same sample."""
        scale, x, y, mirror = torch.rand(4, generator=generator).tolist()
        pixels = to_tensor(self._cut(image, scale, x, y))
        return pixels.flip(2) if self.flip and mirror < 0.5 else pixels

    def _cut(self, image: Image.Image, scale: float, x: float, y: float) -> Image.Image:
        target = (self.resolution, self.resolution)
        if self.crop == "squash":
            return image.resize(target, Image.Resampling.BILINEAR)
        if self.crop == "center":
            return resize_and_crop(image, self.resolution)
        longest = min(image.size)
        least = min(longest, max(self.resolution, round(self.min_crop_scale * longest)))
        side = round(least + scale * (longest - least))
        return crop_and_resize(image, side, self.resolution, (x, y))


def open_images(options: ImageOptions) -> tuple[CaptionedImages | StreamedImages, CaptionedImages | None]:
    """Images to train on, and images to validate on, or None.

    Raises:
        ValueError: for data that cannot be opened, or options that do not go together.
    """
    if not options.dataset:
        raise ValueError("--dataset is missing: give a folder of images, a Hub id, or `scenes`")
    if options.hold_out < 0 or options.hold_out == 1:
        raise ValueError(f"--hold_out ({options.hold_out}) must be 0 (leave out none) or at least 2 (1 of so many)")
    opened = images = _open(options, options.dataset, options.split, options.num_scenes, options.seed)
    held_out = None
    if options.hold_out:
        if isinstance(images, StreamedImages):
            raise ValueError("--hold_out is not possible with --streaming: give --validation_dataset instead")
        images, held_out = hold_out(images, options.hold_out)
    if options.validation_dataset:
        trained, validated = (options.dataset, options.split), (options.validation_dataset, options.validation_split)
        # With another seed, scenes are other scenes.
        held_out = _open(options, *validated, options.validation_images, options.seed + 1)
        same = (_place(trained[0]), trained[1]) == (_place(validated[0]), validated[1])
        shared = _same_files(opened, held_out)
        if (same and options.dataset != SCENES) or shared:
            example = f" ({shared[0]} is in both)" if shared else ""
            raise ValueError(
                f"--validation_dataset ({options.validation_dataset}) is trained on{example}: use --hold_out instead"
            )
    return images, held_out


def open_image_samples(
    options: ImageOptions, images: CaptionedImages | StreamedImages, multiple: int
) -> ImageSamples | StreamedSamples:
    """Samples of images, cut as the options say, with sides divisible by `multiple`.

    Raises:
        ValueError: for a resolution or scale that is not possible.
    """
    preparation = CropPreparation(
        options.resolution, multiple, options.crop, options.min_crop_scale, options.random_flip
    )
    kind = StreamedSamples if isinstance(images, StreamedImages) else ImageSamples
    return kind(images, preparation)


def hold_out(images: CaptionedImages, one_of: int) -> tuple[CaptionedImages, CaptionedImages]:
    """Images to train on and images to keep apart, 1 of `one_of`.

    A hash of the file's name decides, so that order, folder and the other images do not matter.

    Raises:
        ValueError: if one of the two is empty.
    """
    chosen: tuple[list[int], list[int]] = [], []
    for index in range(len(images)):
        name = images.row(index).name.rsplit("/", 1)[-1]
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        chosen[digest % one_of == 0].append(index)
    if not all(chosen):
        raise ValueError(f"hold_out ({one_of}) leaves nothing to train or validate on: {len(images)} images in all")
    return images.select(chosen[0]), images.select(chosen[1])


def spread(images: CaptionedImages | StreamedImages, count: int, seed: int) -> Iterator[Image.Image]:
    """RGB images from all over the data: `count`, or all if there are fewer. `seed` matters to streams."""
    if isinstance(images, StreamedImages):
        for row in images.shuffle(seed).take(count):
            yield row.load()
        return
    count = min(count, len(images))
    for number in range(count):
        yield images[number * len(images) // count]["image"]


def _place(source: str) -> str:
    """The same text for the same folder or data set, however it is written."""
    return os.path.realpath(source) if os.path.isdir(source) else source.rstrip("/")


def _same_files(*parts: CaptionedImages | StreamedImages) -> list:
    """Paths of images of the second part that are in the first one too: by link, or because a folder is in the other."""
    first, second = (
        {(status.st_dev, status.st_ino): path for path in getattr(part, "paths", ()) for status in [os.stat(path)]}
        for part in parts
    )
    return sorted(second[key] for key in first.keys() & second.keys())


def _open(
    options: ImageOptions, source: str, split: str, num_scenes: int, seed: int
) -> CaptionedImages | StreamedImages:
    return open_captioned(
        source,
        options.image_column,
        split=split,
        streaming=options.streaming,
        num_samples=num_scenes,
        resolution=options.resolution,
        seed=seed,
        captions=False,
    )
