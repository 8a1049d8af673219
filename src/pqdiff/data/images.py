"""Read photos of any kind as 8-bit RGB, find them in folders and data sets, bring them to a model's size."""

import itertools
import struct
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError

# What Pillow raises for files that are damaged in one way or another.
BROKEN = (
    *(OSError, SyntaxError, EOFError, ValueError, AttributeError, TypeError, struct.error),
    Image.DecompressionBombError,
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def load_image(path: str | Path) -> Image.Image:
    """Photo as an upright RGB image: EXIF orientation applied, alpha over white, 16-bit gray rounded to 8 bits (of
    16-bit colors Pillow reads the upper 8).

    Raises:
        ValueError: naming the file, if it is missing, empty, corrupt, truncated, too large or not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder, not a photo' if path.is_dir() else 'no such file'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is wrong comes as an error; damaged EXIF alone does no harm
            # By its open file: what Pillow opens by name it maps into memory, and turned TIFFs come out scrambled.
            with path.open("rb") as file, Image.open(file) as image:
                image.load()
                return to_rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"{path}: not an image, or of a kind that Pillow cannot read") from None
    except BROKEN as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as an upright 8-bit RGB image, transparency laid over white.

    Raises:
        ValueError: for floating-point images with values outside [0, 1], or NaN.
    """
    image = _upright(image)
    if image.mode.startswith("I"):  # 16 bits, in modes I;16, I;16B and I
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integer values from {values.min():.0f} to {values.max():.0f} are beyond 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        values = np.asarray(image)
        if not np.isfinite(values).all() or values.min() < 0 or values.max() > 1:
            raise ValueError("floating-point values must be finite and in [0, 1]")
        return Image.fromarray(np.rint(values * 255).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def _upright(image: Image.Image) -> Image.Image:
    """The image turned as its EXIF says; damaged EXIF says nothing.

    Pillow's `exif_transpose` writes all other tags anew, too, and fails if one of them is damaged.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except BROKEN:
        return image
    if turn is None:
        return image
    image = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # which would turn it again
        image.info.pop(key, None)
    return image


def resize_and_crop(image: Image.Image, resolution: int, crop: bool = True) -> Image.Image:
    """Shorter side to `resolution` pixels by Lanczos, then, if `crop`, the square in the center."""
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    image = image.resize(size, Image.Resampling.LANCZOS)
    if not crop:
        return image
    left, top = ((side - resolution) // 2 for side in image.size)
    return image.crop((left, top, left + resolution, top + resolution))


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image as a uint8 tensor `(3, H, W)`."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def to_image(pixels: torch.Tensor) -> Image.Image:
    """uint8 tensor `(3, H, W)` as an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels to fp32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images, nominally in [-1, 1], to uint8 pixels: clamped and rounded."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def pad_to_multiple(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Extend `(B, C, H, W)` at the bottom and right to sides divisible by `factor`, repeating the edge."""
    height, width = images.shape[2:]
    padding = (0, -width % factor, 0, -height % factor)
    return F.pad(images, padding, mode="replicate") if any(padding) else images


def find_images(folder: str | Path) -> list[Path]:
    """Photos in a folder and below it, in name order.

    Raises:
        ValueError: if the folder does not exist or holds none.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if _is_photo(path))
    if not paths:
        raise ValueError(f"{folder}: holds no photos ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def iterate_images(source: str | Path, split: str = "train") -> Iterator[tuple[str, Image.Image]]:
    """Names and RGB images of a folder, or of a data set on the Hub by its id (streamed).

    Raises:
        ValueError: naming the file or data set that cannot be read.
    """
    if Path(source).is_dir():
        for path in find_images(source):
            yield path.name, load_image(path)
        return
    yield from _iterate_dataset(str(source), split)


def _iterate_dataset(name: str, split: str) -> Iterable[tuple[str, Image.Image]]:
    import datasets

    try:
        dataset = datasets.load_dataset(name, split=split, streaming=True)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{name}: neither a folder nor a data set that can be loaded ({reason})") from None
    columns = [key for key, feature in (dataset.features or {}).items() if isinstance(feature, datasets.Image)]
    if not columns:
        raise ValueError(
            f"{name}: has no column of images, only {', '.join(dataset.features or {}) or 'unknown ones'}"
        )
    rows = iter(dataset)
    for number in itertools.count():
        try:
            row = next(rows, None)
            if row is None:
                return
            image = to_rgb(row[columns[0]])
        except (*BROKEN, datasets.exceptions.DatasetsError) as error:
            raise ValueError(f"{name}[{number}]: cannot be read as an image ({error})") from None
        yield f"{name}[{number}]", image
