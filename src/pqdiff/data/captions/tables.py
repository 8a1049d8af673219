"""Images and captions in tables of the library `datasets`: files on this machine or data sets on the Hub."""

import copy
import inspect
import itertools
import sys
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from pqdiff.data.captions.captioned_images import CaptionedImages
from pqdiff.data.captions.metadata import CAPTION_COLUMNS, captions_in, names_of, one_line, path_below
from pqdiff.data.captions.tars import IMAGE_COLUMNS
from pqdiff.data.images.lazy_image import LazyImage


class _Table:
    """What both ways to read a table of the library `datasets` share.

    Args:
        name: what error messages call the source.
        dataset: a `datasets.Dataset` or `datasets.IterableDataset`.
        image_column: column of images, or None for the only one, or the one among `IMAGE_COLUMNS`.
        caption_column: column of captions, or None for the first of `CAPTION_COLUMNS` that there is.
        paths: where files may be that rows name in place of holding images: below a folder, anywhere (True: the names
            come from the library and not from a stranger's file), or nowhere (None).

    Raises:
        ValueError: naming the source and its columns, if a column is missing or it is not clear which one is meant.
    """

    def __init__(
        self,
        name: str,
        dataset,
        image_column: str | None = None,
        caption_column: str | None = None,
        paths: Path | bool | None = None,
    ):
        import datasets

        self.name, self.paths = name, paths
        self.columns = _find_columns(name, dataset.features or {}, image_column, caption_column)
        self.dataset = dataset.cast_column(self.columns[0], datasets.Image(decode=False))

    def _image(self, number: int, row: dict) -> LazyImage:
        name, (image_column, caption_column) = f"{self.name}[{number}]", self.columns
        name = row.get("__key__", name)  # of a webdataset
        captions = captions_in(name, row[caption_column]) if caption_column else ()
        return LazyImage(name, captions, _source(name, row[image_column], self.paths))


class TableImages(_Table, CaptionedImages):
    """Images in a `datasets.Dataset`, by number; arguments as for `_Table`."""

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> LazyImage:
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        return self._image(index, self.dataset[index])


class StreamedImages(_Table):
    """Images in a `datasets.IterableDataset`, in its order; iterating gives `LazyImage`s. Arguments as for `_Table`."""

    rows = range(0, sys.maxsize)  # numbers of the rows of the data set that belong to the stream

    def __iter__(self) -> Iterator[LazyImage]:
        import datasets

        broken = (OSError, ValueError, TypeError, LookupError, AttributeError, EOFError)
        broken += (zlib.error, tarfile.TarError, datasets.exceptions.DatasetsError)
        rows = itertools.islice(iter(self.dataset), self.rows.start, self.rows.stop, self.rows.step)
        for number in self.rows:
            try:
                row = next(rows, None)
            except broken as error:
                raise ValueError(f"{self.name}[{number}]: cannot be read ({one_line(error)})") from None
            if row is None:
                return
            yield self._image(number, row)

    def skip(self, count: int) -> "StreamedImages":
        """The same stream without its first `count` images, which are not decoded."""
        return self._changed(self.dataset, self.rows[count:])

    def take(self, count: int) -> "StreamedImages":
        """The first `count` images of the stream."""
        return self._changed(self.dataset, self.rows[:count])

    def shard(self, index: int, count: int) -> "StreamedImages":
        """Every `count`-th image of the stream, from number `index` on: the streams of all `index` share the images."""
        if not 0 <= index < count:
            raise ValueError(f"index ({index}) of a shard must be in [0, {count})")
        return self._changed(self.dataset, self.rows[index::count])

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "StreamedImages":
        """The stream in another order: files are shuffled, and rows among `buffer_size` that are read ahead.

        Raises:
            ValueError: for a shard: shuffle first.
        """
        dataset, rows = self.dataset, self.rows
        if rows.step != 1:
            raise ValueError(f"{self.name}: shuffle the stream before it is sharded")
        if rows.start:
            dataset = dataset.skip(rows.start)
        if rows.stop < sys.maxsize:
            dataset = dataset.take(len(rows))
        options = {"seed": seed, "buffer_size": buffer_size}
        if "max_buffer_input_shards" in inspect.signature(dataset.shuffle).parameters and dataset.num_shards == 1:
            options["max_buffer_input_shards"] = 1  # nothing to interleave, and the library waits 5 seconds after it
        return self._changed(dataset.shuffle(**options), StreamedImages.rows)

    def _changed(self, dataset, rows: range) -> "StreamedImages":
        result = copy.copy(self)
        result.dataset, result.rows = dataset, rows
        return result


def _find_columns(name: str, features: dict, image_column: str | None, caption_column: str | None) -> tuple:
    """The columns of images and of captions; the second is None if there are no captions."""
    import datasets

    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column is not None and column not in features:
            raise ValueError(f"{name}: has no {argument} ({column}); columns: {names_of(features)}")
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images and image_column is None:
        raise ValueError(f"{name}: has no column of images; columns: {names_of(features)}")
    usual = [key for key in IMAGE_COLUMNS if key in images]
    if len(images) > 1 and not (image_column or usual):
        raise ValueError(f"{name}: has several columns of images ({', '.join(images)}): give one as image_column")
    captions = [key for key in (*CAPTION_COLUMNS, "json") if key in features]
    return image_column or (usual or images)[0], caption_column or (captions[0] if captions else None)


def _source(name: str, cell: dict | None, paths: Path | bool | None) -> Path | bytes:
    """Where the image in the cell of a table is: its bytes, or a file where files may be."""
    if cell is None or not (cell["bytes"] or cell["path"]):
        raise ValueError(f"{name}: has no image")
    if cell["bytes"]:
        return cell["bytes"]
    if paths is not True:
        if paths is None or "://" in cell["path"]:
            raise ValueError(
                f"{name}: names a file ({cell['path']!r:.80}) and does not hold the image; it is not fetched"
            )
        return path_below(paths, cell["path"], name)
    if Path(cell["path"]).is_file():
        return Path(cell["path"])
    from datasets.utils.file_utils import xopen  # opens files on the Hub and inside archives

    try:
        with xopen(cell["path"], "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{name}: cannot be read ({one_line(error)})") from None
