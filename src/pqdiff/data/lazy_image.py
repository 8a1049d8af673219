"""One captioned photo that is not decoded yet: its size is read from the file's header, its pixels on demand."""

import io
import struct
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image, UnidentifiedImageError

from .images import BROKEN, load_image, to_rgb

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class LazyImage:
    """A photo with its captions.

    Attributes:
        name: where it comes from, for people: a relative path, a key, or data set and row number.
        captions: texts that describe it; empty where there are none.
        source: file, or the bytes of one, or an image.
    """

    name: str
    captions: tuple[str, ...]
    source: Path | bytes | Image.Image

    @property
    def caption(self) -> str:
        """First caption, or the empty text."""
        return self.captions[0] if self.captions else ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) that `load` will have; EXIF orientation counts, pixels are not decoded.

        Raises:
            ValueError: naming the photo, if its header cannot be read.
        """
        if isinstance(self.source, Image.Image):
            return to_rgb(self.source).size
        with self._one_line_errors(), self._open() as file, Image.open(file) as image:
            return _upright_size(image, file)

    def load(self) -> Image.Image:
        """Upright 8-bit RGB image.

        Raises:
            ValueError: naming the photo, if it cannot be decoded.
        """
        if isinstance(self.source, Path):
            return load_image(self.source)
        with self._one_line_errors():
            if isinstance(self.source, Image.Image):
                return to_rgb(self.source)
            with self._open() as file, Image.open(file) as image:
                image.load()
                return to_rgb(image)

    def _open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")

    def _one_line_errors(self) -> "_OneLineErrors":
        return _OneLineErrors(str(self.source) if isinstance(self.source, Path) else self.name)


class _OneLineErrors(warnings.catch_warnings):
    """What Pillow raises becomes a ValueError of one line; what it warns of is dropped: damaged EXIF does no harm."""

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def __enter__(self) -> None:
        super().__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, kind, error, traceback) -> None:
        super().__exit__(kind, error, traceback)
        if isinstance(error, UnidentifiedImageError):
            raise ValueError(f"{self.name}: not an image, or of a kind that Pillow cannot read") from None
        if isinstance(error, FileNotFoundError):
            raise ValueError(f"{self.name}: no such file") from None
        if isinstance(error, BROKEN):
            raise ValueError(f"{self.name}: cannot be read as an image ({error})") from None


def _upright_size(image: Image.Image, file: BinaryIO) -> tuple[int, int]:
    if image.format == "PNG" and _has_late_metadata(file):
        image.load()  # the only way to them leads through the pixels
    # The method of PngImageFile would decode every PNG without EXIF.
    orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    width, height = image.size
    if image.format == "TIFF":  # whose size is turned already, in some versions of Pillow
        width, height = (image.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
    return (height, width) if orientation in _SIDEWAYS else (width, height)


def _has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG holds metadata behind its pixels, told from the heads of its chunks."""
    position, seen_pixels, late = file.tell(), False, False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        seen_pixels |= kind == b"IDAT"
        late |= seen_pixels and kind in _PNG_METADATA
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    return late
