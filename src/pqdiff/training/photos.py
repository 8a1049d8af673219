"""Photos for an autoencoder: crops of any scale, mirrored or not, and a part of the data that is never trained on."""

import argparse
import hashlib
from dataclasses import dataclass

import torch
from PIL import Image

from ..data.captioned import SCENES, CaptionedImages, StreamedImages, open_captioned
from ..data.images import resize_and_crop, to_tensor
from ..data.lazy_image import LazyImage
from .samples import PictureSamples, StreamedSamples

CROPS = ("random", "center", "squash")


def add_photo_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that the functions of this file read."""
    data = parser.add_argument_group("data")
    data.add_argument("--dataset", help="folder of pictures, Hub id, or `scenes`; captions are not needed")
    data.add_argument("--split", default="train", help="of a Hub data set")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as it comes")
    data.add_argument("--image_column", default=None, help="default: the first column of images")
    data.add_argument("--num_scenes", type=int, default=100_000, help="with --dataset scenes")
    data.add_argument("--resolution", type=int, default=256, help="side of the training crops in pixels")
    data.add_argument(
        "--crop", choices=CROPS, default="random", help="squash: the whole picture, its aspect ratio not kept"
    )
    data.add_argument(
        "--min_crop_scale",
        type=float,
        default=1.0,
        help="with random: least side of a crop, as a part of the picture's shorter side; 0: down to single pixels",
    )
    data.add_argument("--random_flip", action="store_true", help="mirror half of the pictures")
    data.add_argument("--hold_out", type=int, default=0, help="leave out 1 of so many, by hash of the name; 0: none")
    data.add_argument("--validation_dataset", help="default: what --hold_out left out, else no validation")
    data.add_argument("--validation_split", default="train", help="of a Hub data set, or a subfolder")


@dataclass(frozen=True)
class PhotoPreparation:
    """How a photo becomes a square sample.

    Args:
        resolution: side in pixels.
        multiple: sides are divisible by it.
        crop: `random` place, `center`, or `squash` to a square.
        min_crop_scale: least side of a random crop as a part of the photo's shorter side, in [0, 1]. Crops are not taken
            smaller than `resolution`, so that nothing is enlarged that need not be.
        flip: mirror half of the photos.

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
        """Heights and widths in pixels that photos are cut to."""
        return [(self.resolution, self.resolution)]

    def size_for(self, width: int, height: int) -> tuple[int, int]:
        """Height and width that a photo is cut to."""
        return self.sizes[0]

    def batch(self, items: list[tuple[Image.Image, str]], generators: list[torch.Generator]) -> dict:
        """Batch of `pixels` (B, 3, resolution, resolution), uint8; captions are left aside."""
        pairs = zip(items, generators, strict=True)
        return {"pixels": torch.stack([self.sample(image, generator) for (image, _), generator in pairs])}

    def sample(self, image: Image.Image, generator: torch.Generator) -> torch.Tensor:
        """One sample `(3, resolution, resolution)`, uint8. A generator gives the same one again."""
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
        left, top = round((image.width - side) * x), round((image.height - side) * y)
        box = (left, top, left + side, top + side)
        if side == self.resolution:
            return image.crop(box)  # pixels as they are
        return image.resize(target, Image.Resampling.LANCZOS, box=box)


def open_photos(args: argparse.Namespace) -> tuple[CaptionedImages | StreamedImages, CaptionedImages | None]:
    """Photos to train on, and photos to validate on, or None.

    Raises:
        ValueError: for data that cannot be opened, or flags that do not go together.
    """
    if not args.dataset:
        raise ValueError("--dataset is missing: give a folder of pictures, a Hub id, or `scenes`")
    if args.hold_out < 0 or args.hold_out == 1:
        raise ValueError(f"--hold_out ({args.hold_out}) must be 0 (leave out none) or at least 2 (1 of so many)")
    photos = _open(args, args.dataset, args.split, args.num_scenes, args.seed)
    held_out = None
    if args.hold_out:
        if isinstance(photos, StreamedImages):
            raise ValueError("--hold_out: cannot be had of a stream: give --validation_dataset")
        photos, held_out = hold_out(photos, args.hold_out)
    if args.validation_dataset:
        if (args.validation_dataset, args.validation_split) == (args.dataset, args.split) != (SCENES, args.split):
            raise ValueError(
                f"--validation_dataset ({args.validation_dataset}): is trained on; use --hold_out instead"
            )
        # With another seed scenes are other scenes.
        count = args.validation_images
        held_out = _open(args, args.validation_dataset, args.validation_split, count, args.seed + 1)
    return photos, held_out


def open_photo_samples(
    args: argparse.Namespace, photos: CaptionedImages | StreamedImages, multiple: int
) -> PictureSamples | StreamedSamples:
    """Samples of photos as `args` want them cut, with sides divisible by `multiple`."""
    preparation = PhotoPreparation(args.resolution, multiple, args.crop, args.min_crop_scale, args.random_flip)
    kind = StreamedSamples if isinstance(photos, StreamedImages) else PictureSamples
    return kind(photos, preparation)


def hold_out(photos: CaptionedImages, one_of: int) -> tuple[CaptionedImages, CaptionedImages]:
    """Photos to train on and photos to keep apart, 1 of `one_of`. A hash of the file's name decides: the order, the
    folder and the other photos do not matter."""
    chosen: tuple[list[int], list[int]] = [], []
    for index in range(len(photos)):
        name = photos.row(index).name.rsplit("/", 1)[-1]
        digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
        chosen[digest % one_of == 0].append(index)
    if not all(chosen):
        raise ValueError(f"hold_out ({one_of}) leaves nothing to train or validate on: {len(photos)} photos in all")
    return _Selection(photos, chosen[0]), _Selection(photos, chosen[1])


def spread(photos: CaptionedImages | StreamedImages, count: int, seed: int):
    """RGB images: `count` photos from all over the data, or all if there are fewer."""
    if isinstance(photos, StreamedImages):
        for row in photos.shuffle(seed).take(count):
            yield row.load()
        return
    count = min(count, len(photos))
    for number in range(count):
        yield photos[number * len(photos) // count]["image"]


def _open(args, source: str, split: str, num_scenes: int, seed: int) -> CaptionedImages | StreamedImages:
    return open_captioned(
        source,
        args.image_column,
        split=split,
        streaming=args.streaming,
        num_samples=num_scenes,
        resolution=args.resolution,
        seed=seed,
    )


class _Selection(CaptionedImages):
    def __init__(self, photos: CaptionedImages, indices: list[int]):
        self.photos, self.indices = photos, indices

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, index: int) -> LazyImage:
        return self.photos.row(self.indices[index])
