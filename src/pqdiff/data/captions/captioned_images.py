"""Images with captions by number: what folders, tables and scenes have in common."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch.utils.data import Dataset

from pqdiff.data.images.lazy_image import LazyImage


class CaptionedImages(Dataset, ABC):
    """Images with captions by number. A subclass says how many there are and where each one is."""

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def row(self, index: int) -> LazyImage:
        """Image `index` before decoding, with all its captions."""

    def size_of(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright image, without decoding it."""
        return self.row(index).size

    def select(self, indices: Sequence[int]) -> "CaptionedImages":
        """The images with these numbers, in this order."""
        return _SelectedImages(self, indices)

    def take(self, count: int) -> "CaptionedImages":
        """The first `count` images, or all if there are fewer."""
        return self.select(range(min(count, len(self))))

    def __getitem__(self, index: int) -> dict:
        """`image` (upright RGB), `caption` (the first one, or an empty text), all `captions`, and `name`."""
        row = self.row(index)
        return {"image": row.load(), "caption": row.caption, "captions": row.captions, "name": row.name}


class _SelectedImages(CaptionedImages):
    def __init__(self, images: CaptionedImages, indices: Sequence[int]):
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def row(self, index: int) -> LazyImage:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self.images.row(self.indices[index])
