"""A captioned image that is not decoded yet: its size is read from the file's header, its pixels only when needed."""

import hashlib
import io
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import ExifTags, Image

from pqdiff.data.images.colors import orientation, to_rgb
from pqdiff.data.images.opening import one_line_errors, open_image
from pqdiff.data.images.reading import decode_image, load_image

_SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that exchange width and height
_PNG_METADATA = (b"eXIf", b"tEXt", b"zTXt", b"iTXt")


@dataclass(frozen=True)
class LazyImage:
    """An image with its captions.

    Attributes:
        name: where it comes from, for people: a relative path, a key, or data set and row number.
        captions: texts that describe it; an empty tuple if there are none.
        source: path of an image file, or the bytes of one, or a PIL image.
    """

    name: str
    captions: tuple[str, ...]
    source: Path | bytes | Image.Image

    @property
    def caption(self) -> str:
        """The first caption, or an empty text if there is none."""
        return self.captions[0] if self.captions else ""

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of what `load` returns. Only the file's header is read; the EXIF orientation is considered.

        Raises:
            ValueError: naming the image, if its header cannot be read.
        """
        if isinstance(self.source, Image.Image):
            return to_rgb(self.source).size
        name = str(self.source) if isinstance(self.source, Path) else self.name
        with one_line_errors(name), self._open() as file, open_image(file) as image:
            return _upright_size(image, file)

    def load(self) -> Image.Image:
        """Upright 8-bit RGB image.

        Raises:
            ValueError: naming the image, if it cannot be decoded.
        """
        if isinstance(self.source, Path):
            return load_image(self.source)
        with one_line_errors(self.name):
            if isinstance(self.source, Image.Image):
                return to_rgb(self.source)
            return decode_image(io.BytesIO(self.source))

    def digest(self) -> bytes:
        """16 bytes that tell whether this is the same image with the same name and captions.

        Raises:
            ValueError: naming the image, if its file cannot be read.
        """
        digest = hashlib.blake2b(repr((self.name, self.captions)).encode(errors="surrogatepass"), digest_size=16)
        if isinstance(self.source, Image.Image):
            digest.update(self.source.tobytes())
            return digest.digest()
        with one_line_errors(self.name), self._open() as file:
            while part := file.read(2**20):
                digest.update(part)
        return digest.digest()

    def _open(self) -> BinaryIO:
        return io.BytesIO(self.source) if isinstance(self.source, bytes) else self.source.open("rb")


def _upright_size(image: Image.Image, file: BinaryIO) -> tuple[int, int]:
    if image.format == "PNG" and _has_late_metadata(file):
        image.load()  # Pillow reads the metadata only after the pixels
    # Not `image.getexif()`: that of PngImageFile decodes every PNG without EXIF.
    turned = orientation(lambda: Image.Image.getexif(image)) in _SIDEWAYS
    width, height = image.size
    if image.format == "TIFF":  # some versions of Pillow give the turned size of a TIFF
        width, height = (image.tag_v2[tag] for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
    return (height, width) if turned else (width, height)


def _has_late_metadata(file: BinaryIO) -> bool:
    """Whether a PNG has metadata after its pixels, seen from the headers of its chunks."""
    position, seen_pixels, late = file.tell(), False, False
    file.seek(8)
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        seen_pixels |= kind == b"IDAT"
        late |= seen_pixels and kind in _PNG_METADATA
        file.seek(length + 4, io.SEEK_CUR)
    file.seek(position)
    return late
