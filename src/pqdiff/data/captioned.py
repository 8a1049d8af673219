"""Photos with captions from folders, tar files, the Hub or the generator of scenes, behind two classes.

`CaptionedImages` gives any photo by number, `StreamedImages` one after the other. Both know sizes without decoding.
"""

import itertools
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path

from torch.utils.data import Dataset

from .captions import CAPTION_COLUMNS, METADATA_FILES, captions_in, names_of, one_line, read_metadata, sidecar_captions
from .images import find_images
from .lazy_image import LazyImage

SCENES = "scenes"


class CaptionedImages(Dataset):
    """Photos with captions by number; subclasses say how many there are and where one is."""

    def __len__(self) -> int:
        raise NotImplementedError

    def row(self, index: int) -> LazyImage:
        """Photo `index` before decoding, with all its captions."""
        raise NotImplementedError

    def size_of(self, index: int) -> tuple[int, int]:
        """(width, height) of the upright photo, without decoding it."""
        return self.row(index).size

    def take(self, count: int) -> "CaptionedImages":
        """The first `count` photos, or all if there are fewer."""
        return _FirstImages(self, min(count, len(self)))

    def __getitem__(self, index: int) -> dict:
        """`image` (upright RGB), `caption` (the first, or the empty text), all `captions` and `name`."""
        row = self.row(index)
        return {"image": row.load(), "caption": row.caption, "captions": row.captions, "name": row.name}


class StreamedImages:
    """Photos with captions in the order of their source; iterating gives `LazyImage`s.

    Args:
        name: what error messages call the source.
        dataset: a `datasets.IterableDataset`.
        image_column: column of images, or None for the first one.
        caption_column: column of captions, or None for the first of `CAPTION_COLUMNS` that there is.
    """

    def __init__(self, name: str, dataset, image_column: str | None = None, caption_column: str | None = None):
        self.name, self.start = name, 0
        self.columns = _find_columns(name, dataset.features or {}, image_column, caption_column)
        self.dataset = _undecoded(dataset, self.columns[0])

    def __iter__(self) -> Iterator[LazyImage]:
        import datasets

        broken = (OSError, ValueError, EOFError, zlib.error, tarfile.TarError, datasets.exceptions.DatasetsError)
        rows = iter(self.dataset)
        for number in itertools.count(self.start):
            name = f"{self.name}[{number}]"
            try:
                row = next(rows, None)
            except broken as error:
                raise ValueError(f"{name}: cannot be read ({one_line(error)})") from None
            if row is None:
                return
            yield _row_of_table(name, row, *self.columns)

    def skip(self, count: int) -> "StreamedImages":
        """The same stream without its first `count` photos, which are not decoded."""
        return self._changed(self.dataset.skip(count), self.start + count)

    def take(self, count: int) -> "StreamedImages":
        """The first `count` photos of the stream."""
        return self._changed(self.dataset.take(count), self.start)

    def shuffle(self, seed: int, buffer_size: int = 1000) -> "StreamedImages":
        """The stream in another order: files shuffled, and rows among `buffer_size` read ahead."""
        return self._changed(self.dataset.shuffle(seed=seed, buffer_size=buffer_size), self.start)

    def shard(self, index: int, count: int) -> "StreamedImages":
        """Every `count`-th part of the stream, for one of `count` processes."""
        from datasets.distributed import split_dataset_by_node

        return self._changed(split_dataset_by_node(self.dataset, index, count), self.start)

    def _changed(self, dataset, start: int) -> "StreamedImages":
        result = StreamedImages.__new__(StreamedImages)
        result.name, result.columns, result.dataset, result.start = self.name, self.columns, dataset, start
        return result


def open_captioned(
    source: str | Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str = "train",
    streaming: bool = False,
    num_samples: int = 10_000,
    resolution: int = 64,
    seed: int = 0,
) -> CaptionedImages | StreamedImages:
    """Photos with captions.

    Args:
        source: a folder of photos, of tar files (webdataset) or of any other files that `datasets` reads; a data set
            on the Hub by its id; or `scenes`. Captions of a folder of photos are read from `metadata.csv` or
            `metadata.jsonl` (columns `file_name` and `text`), else from a text file beside each photo, else empty.
        image_column: column of images in a data set, or of file names in a folder's metadata.
        caption_column: column of captions.
        split: split of a data set; in a folder of photos, the subfolder of that name if there is one.
        streaming: read a data set one after the other, without preparing it first. A folder of photos needs no
            preparing: it is read by number all the same.
        num_samples: number of scenes.
        resolution: side of a scene in pixels.
        seed: seed of the scenes.

    Raises:
        ValueError: in one line, naming the source and what is wrong with it.
    """
    if str(source) == SCENES:
        return SceneImages(num_samples, resolution, seed)
    if Path(source).is_dir() and (folder := _photo_folder(Path(source), split)):
        return FolderImages(folder, image_column or "file_name", caption_column)
    dataset = _load_dataset(source, split, streaming)
    kind = StreamedImages if streaming else TableImages
    return kind(str(source), dataset, image_column, caption_column)


class FolderImages(CaptionedImages):
    """Photos in a folder and below it, in name order; with metadata, those that it lists, in its order.

    Args:
        folder: the folder.
        image_column: column of the metadata that holds file names, relative to the metadata's own folder.
        caption_column: column of the metadata that holds captions, or None for the first of `CAPTION_COLUMNS`.

    Raises:
        ValueError: naming the folder or the metadata's line, if a photo or column is missing.
    """

    def __init__(self, folder: str | Path, image_column: str = "file_name", caption_column: str | None = None):
        self.folder = Path(folder)
        tables = sorted(path for name in METADATA_FILES for path in self.folder.rglob(name))
        self.captions = None
        if not tables:
            if caption_column:
                raise ValueError(f"{folder}: caption_column ({caption_column}) needs a {' or '.join(METADATA_FILES)}")
            self.paths = find_images(self.folder)
            return
        rows = [row for table in tables for row in read_metadata(table, image_column, caption_column)]
        self.paths, self.captions = [path for path, _ in rows], [captions for _, captions in rows]
        if not rows:
            raise ValueError(f"{tables[0]}: lists no photos")

    def __len__(self) -> int:
        return len(self.paths)

    def row(self, index: int) -> LazyImage:
        path = self.paths[index]
        captions = sidecar_captions(path) if self.captions is None else self.captions[index]
        return LazyImage(path.relative_to(self.folder).as_posix(), captions, path)


class TableImages(CaptionedImages):
    """Photos in a table of the `datasets` library; arguments as for `StreamedImages`."""

    def __init__(self, name: str, dataset, image_column: str | None = None, caption_column: str | None = None):
        self.name = name
        self.columns = _find_columns(name, dataset.features, image_column, caption_column)
        self.dataset = _undecoded(dataset, self.columns[0])

    def __len__(self) -> int:
        return len(self.dataset)

    def row(self, index: int) -> LazyImage:
        if not 0 <= index < len(self):
            raise IndexError(f"photo {index} of {len(self)}")
        return _row_of_table(f"{self.name}[{index}]", self.dataset[index], *self.columns)


class SceneImages(CaptionedImages):
    """Captioned synthetic scenes (`pqdiff.data.scenes`), drawn when asked for."""

    def __init__(self, num_scenes: int, resolution: int, seed: int = 0):
        from .scenes import SceneDataset

        self.scenes, self.resolution, self.seed = SceneDataset(num_scenes, resolution, seed), resolution, seed

    def __len__(self) -> int:
        return len(self.scenes)

    def row(self, index: int) -> LazyImage:
        scene = self.scenes[index]
        return LazyImage(f"{SCENES}-{self.seed}[{index}]", (scene["caption"],), scene["image"])

    def size_of(self, index: int) -> tuple[int, int]:
        return self.resolution, self.resolution


class _FirstImages(CaptionedImages):
    def __init__(self, photos: CaptionedImages, count: int):
        self.photos, self.count = photos, count

    def __len__(self) -> int:
        return self.count

    def row(self, index: int) -> LazyImage:
        if not 0 <= index < self.count:
            raise IndexError(f"photo {index} of {self.count}")
        return self.photos.row(index)


def _photo_folder(folder: Path, split: str) -> Path | None:
    """The folder of photos to read for a split, or None if there are none."""
    part = folder / split
    if not part.is_dir():
        if split != "train":
            raise ValueError(f"{folder}: split ({split}) is no subfolder of it")
        part = folder
    try:
        find_images(part)
    except ValueError:
        return None
    return part


def _load_dataset(source: str | Path, split: str, streaming: bool):
    import datasets

    try:
        return datasets.load_dataset(str(source), split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = f"neither a folder of photos nor a data set that can be loaded ({one_line(error)})"
        raise ValueError(f"{source}: {reason}") from None


def _find_columns(name: str, features: dict, image_column: str | None, caption_column: str | None) -> tuple:
    """The two columns to read; the second is None where there are no captions."""
    import datasets

    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column is not None and column not in features:
            raise ValueError(f"{name}: has no {argument} ({column}); columns: {names_of(features)}")
    images = [key for key, feature in features.items() if isinstance(feature, datasets.Image)]
    if not images and image_column is None:
        raise ValueError(f"{name}: has no column of images; columns: {names_of(features)}")
    captions = [key for key in (*CAPTION_COLUMNS, "json") if key in features]
    return image_column or images[0], caption_column or (captions[0] if captions else None)


def _undecoded(dataset, image_column: str):
    import datasets

    return dataset.cast_column(image_column, datasets.Image(decode=False))


def _row_of_table(name: str, row: dict, image_column: str, caption_column: str | None) -> LazyImage:
    cell = row[image_column]
    if cell is None:
        raise ValueError(f"{name}: has no image")
    name = row.get("__key__", name)  # webdataset
    return LazyImage(name, captions_in(name, row[caption_column]) if caption_column else (), _source(cell))


def _source(cell: dict) -> Path | bytes:
    if cell["bytes"] is not None:
        return cell["bytes"]
    if Path(cell["path"]).is_file():
        return Path(cell["path"])
    from datasets.utils.file_utils import xopen  # a file on the Hub, or inside an archive

    with xopen(cell["path"], "rb") as file:
        return file.read()
