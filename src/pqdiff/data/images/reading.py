"""Find image files, read images of any kind as 8-bit RGB, and turn them into tensors and back."""

import contextlib
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, UnidentifiedImageError

# Everything that Pillow raises for damaged files.
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
    """An image file as an upright 8-bit RGB image.

    The EXIF orientation is applied, transparency is laid over white, and 16-bit gray is rounded to 8 bits. (Of 16-bit
    colors Pillow reads the upper 8 bits.)

    Raises:
        ValueError: naming the file, if it is missing, empty, corrupt, truncated, too large or not an image.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: {'is a folder, not an image' if path.is_dir() else 'no such file'}")
    # Not by name: Pillow maps such files into memory, and TIFFs that it has to turn come out scrambled.
    with one_line_errors(str(path)), path.open("rb") as file:
        return decode_image(file)


def decode_image(file: BinaryIO) -> Image.Image:
    """An open image file as an upright 8-bit RGB image; raises what Pillow raises."""
    with Image.open(file) as image:
        image.load()
        return to_rgb(image)


@contextlib.contextmanager
def one_line_errors(name: str) -> Iterator[None]:
    """Turn what Pillow raises into a ValueError of one line that begins with `name`, and silence its warnings.

    What is wrong with an image comes as an error. Warnings are about damaged EXIF, which does no harm.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UnidentifiedImageError:
            raise ValueError(f"{name}: is not an image, or of a format that Pillow cannot read") from None
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file") from None
        except BROKEN as error:
            raise ValueError(f"{name}: cannot be read as an image ({' '.join(str(error).split())})") from None


def to_rgb(image: Image.Image) -> Image.Image:
    """Any PIL image as an upright 8-bit RGB image, with transparency laid over white.

    Raises:
        ValueError: for floating-point images with values outside [0, 1] or NaN, and for integers beyond 16 bits.
    """
    image = _upright(image)
    if image.mode.startswith("I"):  # 16-bit gray has mode I;16, I;16B or I
        values = np.asarray(image).astype(np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"integer values ({values.min():.0f} to {values.max():.0f}) are beyond 16 bits")
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
    """The image, turned as its EXIF orientation asks; damaged EXIF is ignored.

    Pillow's `exif_transpose` is not used: it also rewrites all other tags, and fails if one of them is damaged.
    """
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except BROKEN:
        return image
    if turn is None:
        return image
    image = image.transpose(turn)
    for key in ("exif", "Raw profile type exif", "XML:com.adobe.xmp", "xmp"):  # else it would be turned again later
        image.info.pop(key, None)
    return image


def to_tensor(image: Image.Image) -> torch.Tensor:
    """RGB image as a uint8 tensor `(3, H, W)`."""
    return torch.from_numpy(np.array(image, dtype=np.uint8)).permute(2, 0, 1).contiguous()


def to_image(pixels: torch.Tensor) -> Image.Image:
    """uint8 tensor `(3, H, W)` as an RGB image."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def normalize(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pixels of any shape to fp32 in [-1, 1]."""
    return pixels.float().div_(127.5).sub_(1)


def to_pixels(images: torch.Tensor) -> torch.Tensor:
    """Images in [-1, 1] of any shape and float type to uint8 pixels: rounded, and clamped where they are outside."""
    return images.float().add(1).mul_(127.5).round_().clamp_(0, 255).to(torch.uint8)


def pad_to_multiple(images: torch.Tensor, factor: int) -> torch.Tensor:
    """Extend images `(B, C, H, W)` at the bottom and right by repeating their edge, to sides divisible by `factor`."""
    height, width = images.shape[2:]
    padding = (0, -width % factor, 0, -height % factor)
    return F.pad(images, padding, mode="replicate") if any(padding) else images


def find_images(folder: str | Path) -> list[Path]:
    """Image files in a folder and its subfolders, in name order.

    Raises:
        ValueError: if the folder does not exist or holds no images.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    paths = sorted(path for path in folder.rglob("*") if _is_image(path))
    if not paths:
        raise ValueError(f"{folder}: holds no images ({', '.join(IMAGE_SUFFIXES)})")
    return paths


def holds_images(folder: str | Path) -> bool:
    """Whether there is an image file in a folder or its subfolders; stops at the first one."""
    return any(_is_image(path) for path in Path(folder).rglob("*"))


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()
