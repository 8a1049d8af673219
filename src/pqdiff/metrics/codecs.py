"""Image codecs at a quality or a rate, to compare tokenizers with: what a codec costs is the size of its file."""

import io
import re
from dataclasses import dataclass

import torch
from PIL import Image, features
from torchmetrics import Metric

from pqdiff.suggestions import did_you_mean

# name: Pillow's format, options of `save`
_FORMATS = {
    "jpeg": ("JPEG", {}),
    "jpeg444": ("JPEG", {"subsampling": "4:4:4"}),
    "webp": ("WebP", {"method": 6}),
    "avif": ("AVIF", {"speed": 6}),
}
_SPEC = re.compile(r"(?P<name>[a-z0-9]+)(:(?P<quality>\d+)|@(?P<rate>\d+(\.\d+)?)bpp)", re.IGNORECASE)
_QUALITIES = range(1, 101)


@dataclass(frozen=True)
class Codec:
    """A codec of Pillow at a quality, or at the largest quality whose file has at most so many bits per pixel.

    Attributes:
        name: `jpeg` (colors at half resolution, as cameras and browsers have it), `jpeg444`, `webp` or `avif`.
        quality: 1 to 100, or None for a rate.
        rate: bits per pixel of each file, or None. The smallest file of the codec may still be larger.
    """

    name: str
    quality: int | None = None
    rate: float | None = None

    def __post_init__(self):
        if self.name not in _FORMATS:
            raise ValueError(f"codec ({self.name!r}) is not known: {did_you_mean(self.name, _FORMATS)}")
        if (self.quality is None) == (self.rate is None):
            raise ValueError(f"codec {self.name} needs either a quality or a rate")
        if self.quality is not None and self.quality not in _QUALITIES:
            raise ValueError(f"quality ({self.quality}) of codec {self.name} must be from 1 to 100")
        if self.rate is not None and not 0 < self.rate < 100:
            raise ValueError(f"rate ({self.rate}) of codec {self.name} must be above 0 and below 100 bits per pixel")
        kind = _FORMATS[self.name][0].lower()
        if kind != "jpeg" and not features.check(kind):
            raise ValueError(f"codec {self.name} is not in this build of Pillow: install another, or leave it out")

    @classmethod
    def parse(cls, text: str) -> "Codec | None":
        """A codec from `NAME:QUALITY` or `NAME@RATEbpp`, such as `jpeg:75` or `avif@0.5bpp`; None if it is another text.

        Raises:
            ValueError: for a number out of range.
        """
        match = _SPEC.fullmatch(text)
        if not match or match["name"].lower() not in _FORMATS:
            return None
        name, quality, rate = match["name"].lower(), match["quality"], match["rate"]
        return cls(name, int(quality)) if quality else cls(name, rate=float(rate))

    def __str__(self) -> str:
        return f"{self.name}:{self.quality}" if self.rate is None else f"{self.name}@{self.rate:g}bpp"

    def compress(self, image: Image.Image) -> bytes:
        """The file of an RGB image."""
        if self.rate is None:
            return self._file(image, self.quality)
        allowed = self.rate * image.width * image.height / 8
        best, low, high = self._file(image, _QUALITIES[0]), _QUALITIES[0] + 1, _QUALITIES[-1]
        while low <= high:  # sizes grow with the quality, but for a few bytes
            middle = (low + high) // 2
            file = self._file(image, middle)
            if len(file) <= allowed:
                best, low = file, middle + 1
            else:
                high = middle - 1
        return best

    def decompress(self, file: bytes) -> Image.Image:
        """The RGB image of a file by `compress`."""
        with Image.open(io.BytesIO(file), formats=(_FORMATS[self.name][0],)) as image:
            return image.convert("RGB")

    def _file(self, image: Image.Image, quality: int) -> bytes:
        file = io.BytesIO()
        kind, options = _FORMATS[self.name]
        image.save(file, kind, quality=quality, **options)
        return file.getvalue()


class FileBitsPerPixel(Metric):
    """Bits per pixel of files: all their bytes, headers included, over all pixels. Lower is better."""

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("bytes", torch.tensor(0), dist_reduce_fx="sum")
        self.add_state("pixels", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, num_bytes: int, num_pixels: int) -> None:
        """Add files of `num_bytes` in total, which stand for `num_pixels` pixels."""
        self.bytes += num_bytes
        self.pixels += num_pixels

    def compute(self) -> torch.Tensor:
        """Bits per pixel, float64 `()`."""
        return 8 * self.bytes.double() / self.pixels
