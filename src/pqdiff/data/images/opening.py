"""The one way to open an image file: few formats, bounded sizes, and every error in one line.

What a stranger sends may be anything. Pillow reads some forty formats, of which one starts a PostScript interpreter, and
its decoders raise errors of every kind. So the formats are listed here, the size is checked before pixels are decoded,
and `one_line_errors` catches whatever a decoder raises.
"""

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".avif")
MOST_PIXELS = 2**27  # 134 megapixels; cameras have up to about 100
_ALWAYS_FINE = 2**24  # pixels that any file may have, however small it is
_MOST_PIXELS_PER_BYTE = 50  # of larger images; photos have less than 20
_GRAY_LEVELS = {"1": 2, "L;2": 4, "L;4": 16}  # of PNGs with few bits, by Pillow's name of how pixels are packed
_SWAPPED = {"16B": "16L", "16L": "16B", "16N": "16B"}  # Pillow keeps one byte of two; so it keeps the other one


def open_image(file: BinaryIO) -> Image.Image:
    """An open file as a PIL image whose pixels are not decoded yet; raises what Pillow raises.

    Raises:
        ValueError: if the image has more than `MOST_PIXELS`, or far more than a file of its size should have.
    """
    image = Image.open(file, formats=FORMATS)
    pixels, size = image.width * image.height, file.seek(0, io.SEEK_END)
    if pixels > MOST_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, at most {MOST_PIXELS:,} are read: make it smaller")
    if pixels > max(_ALWAYS_FINE, _MOST_PIXELS_PER_BYTE * size):
        raise ValueError(
            f"{image.width} x {image.height} pixels in {size:,} bytes, which no photo has: above {_ALWAYS_FINE:,} pixels, "
            f"at most {_MOST_PIXELS_PER_BYTE} per byte are read"
        )
    if isinstance(image.info.get("transparency"), int) and (levels := _GRAY_LEVELS.get(_packing(image))):
        image.info["transparency"] *= 255 // (levels - 1)  # the file has it in its own bits, the pixels in 8
    return image


def open_low_bytes(file: BinaryIO) -> Image.Image | None:
    """The lower 8 bits of an image with 16 bits per color, of which Pillow reads the upper 8; None for other images.

    Gray with alpha comes in mode CMYK: the upper and lower 8 bits of the gray, then those of alpha.
    """
    image = Image.open(file, formats=FORMATS)
    kind, _, bits = _packing(image).partition(";")
    if kind == "LA" and bits == "16B":
        image._mode = packing = "CMYK"  # four bytes that stay as they are
    elif kind in ("RGB", "RGBA", "RGBX", "CMYK") and bits in _SWAPPED:
        packing = f"{kind};{_SWAPPED[bits]}"
    else:
        return None
    arguments = [packing if isinstance(tile.args, str) else (packing, *tile.args[1:]) for tile in image.tile]
    image.tile = [tile._replace(args=args) for tile, args in zip(image.tile, arguments, strict=True)]
    return image


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
            raise ValueError(f"{name}: is not an image, or not one of {', '.join(FORMATS)}") from None
        except FileNotFoundError:
            raise ValueError(f"{name}: no such file") from None
        except Exception as error:  # decoders raise whatever they like: RuntimeError, SyntaxError, struct.error ...
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(f"{name}: cannot be read as an image ({reason})") from None


def _packing(image: Image.Image) -> str:
    """Pillow's name of how the pixels of a PNG or TIFF are packed, such as `RGB;16B`; empty for other formats."""
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return ""
    args = image.tile[0].args
    return args if isinstance(args, str) else str(args[0])
