"""Load tables with the library `datasets`: from files in a folder, or from the Hub.

In a folder, the files are found here: names with brackets are no patterns, and a README of the folder, which could name
files elsewhere, is not followed.
"""

import glob
import re
from collections import defaultdict
from pathlib import Path

from pqdiff.data.captions.metadata import METADATA_FILES, one_line
from pqdiff.data.captions.tables import StreamedImages, TableImages
from pqdiff.data.captions.tars import tar_rows
from pqdiff.data.images.opening import IMAGE_SUFFIXES
from pqdiff.data.images.reading import walk

_KINDS = {".parquet": "parquet", ".arrow": "arrow", ".jsonl": "json", ".csv": "csv", ".json": "json"}
_ALWAYS_FINE = 2**24  # bytes that any parquet file may hold
_MOST_PER_BYTE = 50  # of larger ones; photos and their captions have less than 5
_NO_TABLES = (*METADATA_FILES, "dataset_info.json", "state.json")
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "eval", "evaluation"), "test"),
}


def load_table(
    source: str | Path, split: str, streaming: bool, image_column: str | None, caption_column: str | None
) -> TableImages | StreamedImages:
    """Images of tables or tar files in a folder, or of a data set on the Hub.

    Raises:
        ValueError: in one line that names the source and what is wrong with it.
    """
    import datasets

    try:
        dataset, trusted = _load(source, split, streaming, image_column, caption_column)
    except (OSError, ValueError, TypeError, LookupError, AttributeError, datasets.exceptions.DatasetsError) as error:
        reason = "neither a folder of images nor a data set that can be loaded"
        if Path(source).is_dir():
            reason = f"holds no images ({', '.join(IMAGE_SUFFIXES)}), and no data set can be loaded from it"
        raise ValueError(f"{source}: {reason} ({one_line(error.__cause__ or error)})") from None
    if dataset.builder_name == "generator":  # the columns were chosen when the tars were read
        image_column = caption_column = None
    kind = StreamedImages if streaming else TableImages
    return kind(str(source), dataset, image_column, caption_column, trusted)


def _load(source, split: str, streaming: bool, image_column: str | None, caption_column: str | None):
    """A data set, and what the paths in it may be: all of a builder's own, a folder's, or none."""
    import datasets

    columns = {"image_column": image_column, "caption_column": caption_column}
    if Path(source).is_dir():
        suffix, files = _table_files(Path(source), split)
        if suffix == ".tar":
            return _load_tars([str(file) for file in files], streaming, columns), None
        names = [glob.escape(str(file.absolute())) for file in files]
        options = {"data_files": {"train": names}, "split": "train", "streaming": streaming}
        if suffix == ".parquet":
            _check_sizes(files)
            options["batch_size"] = 8  # rows in memory at a time: one value of the file can stand in many of them
        return datasets.load_dataset(_KINDS[suffix], **options), Path(source)
    builder = datasets.load_dataset_builder(str(source))
    if builder.name == "webdataset":
        if split not in builder.config.data_files:
            raise ValueError(f"has no split {split}, but {', '.join(builder.config.data_files)}")
        return _load_tars(list(builder.config.data_files[split]), streaming, columns), None
    trusted = True if builder.name == "imagefolder" else None  # its paths are those of its own files
    if streaming:
        return builder.as_streaming_dataset(split=split), trusted
    builder.download_and_prepare()
    return builder.as_dataset(split=split), trusted


def _check_sizes(files: list[Path]) -> None:
    """ValueError for a parquet file that says that its content is far larger than a file of photos can be."""
    from pyarrow import parquet

    for path in files:
        footer = parquet.read_metadata(path)
        content = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
        if content > max(_ALWAYS_FINE, _MOST_PER_BYTE * path.stat().st_size):
            raise ValueError(
                f"{path.name}: {content:,} bytes in a file of {path.stat().st_size:,}, which no photos are"
            )


def _load_tars(paths: list[str], streaming: bool, columns: dict):
    import datasets

    # Size and time, because prepared data sets are found again by what was given.
    stats = [path.stat() if (path := Path(name)).is_file() else None for name in paths]
    files = [
        (name, *((stat.st_size, stat.st_mtime_ns) if stat else ())) for name, stat in zip(paths, stats, strict=True)
    ]
    text = datasets.Value("string")
    features = {"__key__": text, "image": datasets.Image(decode=False), "captions": datasets.List(text)}
    kind = datasets.IterableDataset if streaming else datasets.Dataset
    arguments = {"files": files, **columns}
    return kind.from_generator(tar_rows, features=datasets.Features(features), gen_kwargs=arguments)


def _table_files(folder: Path, split: str) -> tuple[str, list[Path]]:
    """Suffix and files of the tables of a split, in name order."""
    files = defaultdict(list)
    for path in walk(folder):
        if path.suffix.lower() in (".tar", *_KINDS) and path.name not in _NO_TABLES:
            files[path.suffix.lower()].append(path)
    suffix = next((suffix for suffix in (".tar", *_KINDS) if files[suffix]), None)
    if suffix is None:
        raise ValueError(f"there are no files of {', '.join(('.tar', *_KINDS))}")
    splits = defaultdict(list)
    for path in files[suffix]:
        splits[_split_of(path.relative_to(folder).as_posix())].append(path)
    if split not in splits:
        raise ValueError(f"has no split {split}, but {', '.join(splits)}")
    return suffix, splits[split]


def _split_of(name: str) -> str:
    """The split that the name of a file says: `train-00000-of-00002`, `data/test.parquet`; else train."""
    if numbered := re.search(r"(\w+)-\d{5}-of-\d{5}", name):
        return numbered[1]
    words = re.split(r"[^a-z]+", name.lower())
    return next((SPLIT_WORDS[word] for word in words if word in SPLIT_WORDS), "train")
