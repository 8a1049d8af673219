"""Open images with captions: folders, tar files, data sets of the Hub, or generated scenes.

`open_captioned` returns `CaptionedImages`, which give any image by its number, or `StreamedImages`, which come one after
the other. Both know the sizes of images without decoding them. `iterate_images` is for users who need no captions.
"""

from collections.abc import Iterator
from pathlib import Path

from diffusers.utils import logging
from PIL import Image

from pqdiff.clean_text import escaped
from pqdiff.data.captions.captioned_images import CaptionedImages
from pqdiff.data.captions.loading import SPLIT_WORDS, load_table
from pqdiff.data.captions.metadata import METADATA_FILES, read_metadata, sidecar_captions
from pqdiff.data.captions.tables import StreamedImages
from pqdiff.data.images.lazy_image import LazyImage
from pqdiff.data.images.reading import find_images, holds_images, walk
from pqdiff.data.scenes.scenes import SceneDataset

SCENES = "scenes"

logger = logging.get_logger(__name__)


def open_captioned(
    source: str | Path,
    image_column: str | None = None,
    caption_column: str | None = None,
    split: str = "train",
    streaming: bool = False,
    num_samples: int = 10_000,
    resolution: int = 64,
    seed: int = 0,
    captions: bool = True,
) -> CaptionedImages | StreamedImages:
    """Images with captions.

    Args:
        source: a folder of images, of tar files (webdataset) or of other files that the library `datasets` reads; a data
            set on the Hub by its id; or `scenes`. Captions of a folder of images are read from `metadata.csv` or
            `metadata.jsonl` (columns `file_name` and `text`); without such a file, from a text file beside each image.
        image_column: column of images in a data set, or of file names in the metadata of a folder.
        caption_column: column of captions.
        split: split of a data set. In a folder of images: the subfolder of that name; for `train`, which is the default,
            the folder itself if it has no such subfolder, or if `train` lies beside folders that are no splits (classes).
        streaming: read a data set one row after the other, without preparing it first. A folder of images needs no
            preparation and is always read by number.
        num_samples: number of scenes.
        resolution: side of a scene in pixels.
        seed: seed of the scenes.
        captions: whether captions are needed. If not, and without `image_column`, a folder gives all its images, whatever
            metadata and text files it holds.

    Raises:
        ValueError: in one line that names the source and what is wrong with it.
    """
    if str(source) == SCENES:
        return SceneDataset(num_samples, resolution, seed)
    if Path(source).is_dir() and (folder := _image_folder(Path(source), split)):
        return FolderImages(folder, image_column, caption_column, captions, is_split=folder != Path(source))
    images = load_table(source, split, streaming, image_column, caption_column)
    if captions and images.columns[1] is None:
        logger.warning(f"{source}: has no column of captions: all captions are empty")
    return images


def iterate_images(source: str | Path, split: str = "train") -> Iterator[Image.Image]:
    """Upright RGB images of whatever `open_captioned` opens, one after the other; a data set is streamed.

    Raises:
        ValueError: naming the source, file or row that cannot be read.
    """
    images = open_captioned(source, split=split, streaming=True, captions=False)
    rows = images if isinstance(images, StreamedImages) else map(images.row, range(len(images)))
    for row in rows:
        yield row.load()


class FolderImages(CaptionedImages):
    """Images in a folder and its subfolders, in name order; with metadata, those that it lists, in its order.

    Args:
        folder: the folder.
        image_column: column of the metadata with file names relative to the metadata's own folder; default `file_name`.
        caption_column: column of the metadata with captions, or None for the first of `CAPTION_COLUMNS` that there is.
        captions: whether to read captions; without them and without `image_column`, metadata is ignored.
        is_split: whether metadata beside the folder may list its images too.

    Raises:
        ValueError: naming the folder or the line of the metadata, if an image or a column is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        image_column: str | None = None,
        caption_column: str | None = None,
        captions: bool = True,
        is_split: bool = False,
    ):
        self.folder, self.has_sidecars, self.captions = Path(folder), False, None
        tables = []
        if captions or image_column:
            tables = sorted(path for path in walk(self.folder) if path.name in METADATA_FILES)
            tables += [path for name in METADATA_FILES if (path := self.folder.parent / name).is_file()] * is_split
        if not tables:
            if caption_column:
                raise ValueError(f"{folder}: caption_column ({caption_column}) needs a {' or '.join(METADATA_FILES)}")
            self.paths, self.has_sidecars = find_images(self.folder), captions
            missing = sum(not path.with_suffix(".txt").is_file() for path in self.paths) if captions else 0
            if missing:
                logger.warning(f"{folder}: {missing} of {len(self.paths)} images have no caption")
            return
        listed: dict[Path, list[str]] = {}
        origin: dict[Path, Path] = {}
        for table in tables:
            for path, texts in read_metadata(table, image_column or "file_name", caption_column):
                if self.folder not in path.parents:
                    continue  # of another split
                if origin.setdefault(path, table) != table:
                    raise ValueError(f"{path}: is listed in {origin[path]} and in {table}: remove one of them")
                listed.setdefault(path, []).extend(texts)
        self.paths = list(listed)
        self.captions = [tuple(dict.fromkeys(texts)) for texts in listed.values()]
        if not listed:
            raise ValueError(f"{tables[0]}: lists no images of {folder}")
        missing = sum(not any(texts) for texts in self.captions) if captions else 0
        unlisted = len(set(find_images(self.folder)) - set(self.paths))
        if missing or unlisted:
            logger.warning(
                f"{folder}: {missing} of {len(self.paths)} images have no caption, and {unlisted} images are not listed "
                "and left out"
            )

    def __len__(self) -> int:
        return len(self.paths)

    def row(self, index: int) -> LazyImage:
        path = self.paths[index]
        captions = self.captions[index] if self.captions is not None else ()
        if self.has_sidecars:
            captions = sidecar_captions(path)
        return LazyImage(escaped(path.relative_to(self.folder).as_posix()), captions, path)


def _image_folder(folder: Path, split: str) -> Path | None:
    """The folder of images to read for a split, or None if `folder` holds no images but perhaps a data set.

    Raises:
        ValueError: if it is not clear whether `train` is a split or a class.
    """
    parts = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    others = [path.name for path in parts if path.name != split and path.name.lower() not in SPLIT_WORDS]
    part = folder / split
    if part.is_dir() and (split != "train" or not any(holds_images(folder / name) for name in others)):
        return part if holds_images(part) else None
    if not holds_images(folder):
        return None
    if split != "train":
        raise ValueError(f"{folder}: split ({split}) must be the name of a subfolder, or train")
    splits = [path.name for path in parts if path.name not in (*others, split)]
    if part.is_dir() and splits:
        raise ValueError(
            f"{folder}: holds splits ({split}, {', '.join(splits)}) beside other folders ({', '.join(others)}): give the "
            "folder to read"
        )
    return folder  # with `train` as one of its classes
