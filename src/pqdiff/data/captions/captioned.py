"""Open images with captions: folders, tar files, data sets of the Hub, or generated scenes.

`open_captioned` returns `CaptionedImages`, which give any image by its number, or `StreamedImages`, which come one after
the other. Both know the sizes of images without decoding them. `iterate_images` is for users who need no captions.
"""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image

from pqdiff.data.captions.captioned_images import CaptionedImages
from pqdiff.data.captions.metadata import METADATA_FILES, one_line, read_metadata, sidecar_captions
from pqdiff.data.captions.tables import StreamedImages, TableImages
from pqdiff.data.images.lazy_image import LazyImage
from pqdiff.data.images.opening import IMAGE_SUFFIXES
from pqdiff.data.images.reading import find_images, holds_images
from pqdiff.data.scenes.scenes import SceneDataset

SCENES = "scenes"


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
            the folder itself if it has no such subfolder.
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
        return FolderImages(folder, image_column, caption_column, captions)
    dataset = _load_dataset(source, split, streaming)
    kind = StreamedImages if streaming else TableImages
    return kind(str(source), dataset, image_column, caption_column)


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

    Raises:
        ValueError: naming the folder or the line of the metadata, if an image or a column is missing.
    """

    def __init__(
        self,
        folder: str | Path,
        image_column: str | None = None,
        caption_column: str | None = None,
        captions: bool = True,
    ):
        self.folder, self.has_sidecars, self.captions = Path(folder), False, None
        tables = []
        if captions or image_column:
            tables = sorted(path for name in METADATA_FILES for path in self.folder.rglob(name))
        if not tables:
            if caption_column:
                raise ValueError(f"{folder}: caption_column ({caption_column}) needs a {' or '.join(METADATA_FILES)}")
            self.paths, self.has_sidecars = find_images(self.folder), captions
            return
        rows = [row for table in tables for row in read_metadata(table, image_column or "file_name", caption_column)]
        self.paths, self.captions = [path for path, _ in rows], [texts for _, texts in rows]
        if not rows:
            raise ValueError(f"{tables[0]}: lists no images")

    def __len__(self) -> int:
        return len(self.paths)

    def row(self, index: int) -> LazyImage:
        path = self.paths[index]
        captions = self.captions[index] if self.captions is not None else ()
        if self.has_sidecars:
            captions = sidecar_captions(path)
        return LazyImage(path.relative_to(self.folder).as_posix(), captions, path)


def _image_folder(folder: Path, split: str) -> Path | None:
    """The folder of images to read for a split, or None if `folder` holds no images but perhaps a data set."""
    part = folder / split
    if part.is_dir():
        return part if holds_images(part) else None
    if not holds_images(folder):
        return None
    if split != "train":
        raise ValueError(f"{folder}: split ({split}) must be the name of a subfolder, or train")
    return folder


def _load_dataset(source: str | Path, split: str, streaming: bool):
    import datasets

    try:
        return datasets.load_dataset(str(source), split=split, streaming=streaming)
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        reason = "neither a folder of images nor a data set that can be loaded"
        if Path(source).is_dir():
            reason = f"holds no images ({', '.join(IMAGE_SUFFIXES)}), and no data set can be loaded from it"
        raise ValueError(f"{source}: {reason} ({one_line(error)})") from None
