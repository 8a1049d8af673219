"""Captions as they are stored: metadata files of a folder, text files beside images, cells of tables."""

import csv
from collections.abc import Iterator
from pathlib import Path

from pqdiff.json_text import parse_json

CAPTION_COLUMNS = ("text", "caption", "captions", "prompt", "txt", "sentences", "description")
METADATA_FILES = ("metadata.csv", "metadata.jsonl")


def read_metadata(table: Path, image_column: str, caption_column: str | None) -> Iterator[tuple]:
    """Paths of images and their captions, as a metadata file lists them.

    Raises:
        ValueError: naming the file and the row, if it cannot be read, or a column or an image is missing.
    """
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            is_csv = table.suffix == ".csv"
            rows = list(csv.DictReader(file, strict=True) if is_csv else (parse_json(x) for x in file if x.strip()))
    except (OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{table}: cannot be read ({one_line(error)})") from None
    for number, row in enumerate(rows, start=1):
        where = f"{table}, row {number}"
        if not isinstance(row, dict) or not isinstance(row.get(image_column), str):
            raise ValueError(f"{where}: has no {image_column} (columns: {names_of(row)})")
        if None in row:  # where a DictReader puts what is beyond the columns
            raise ValueError(f"{where}: has more cells than columns: put captions with commas in quotation marks")
        column = caption_column or next((name for name in CAPTION_COLUMNS if name in row), None)
        if caption_column and caption_column not in row:
            raise ValueError(f"{where}: has no caption_column ({caption_column}; columns: {names_of(row)})")
        path = path_below(table.parent, row[image_column], where)
        yield path, captions_in(where, row[column]) if column else ()


def path_below(folder: Path, name: str, where: str) -> Path:
    """A file that a table names, relative to its folder.

    Raises:
        ValueError: if it is not a file, or outside of the folder: a table of a stranger must not read other files.
    """
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise ValueError(f"{where}: {name!r:.80} must be a file below {folder}")
    if not (folder / path).is_file():
        raise ValueError(f"{where}: {folder / path} does not exist, or is not a file")
    return folder / path


def sidecar_captions(path: Path) -> tuple[str, ...]:
    """The caption in the text file beside the image `path`, or no caption if there is no such file."""
    text = path.with_suffix(".txt")
    if not text.is_file():
        return ()
    try:
        return captions_in(str(text), text.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{text}: is not text in UTF-8") from None


def captions_in(where: str, value) -> tuple[str, ...]:
    """Captions in the cell of a table, without superfluous spaces.

    Args:
        where: what error messages call the cell.
        value: a text, a list of texts, None, or (in a webdataset) an object with one of `CAPTION_COLUMNS`.

    Raises:
        ValueError: if it holds something else.
    """
    if isinstance(value, dict):
        value = next((value[name] for name in CAPTION_COLUMNS if name in value), None)
    values = value if isinstance(value, (list, tuple)) else [value]
    texts = [text.decode(errors="replace") if isinstance(text, bytes) else text for text in values if text is not None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: captions must be text, got {value!r:.80}")
    return tuple(" ".join(text.split()) for text in texts)


def names_of(columns) -> str:
    """The names of the columns for an error message."""
    return ", ".join(map(str, columns)) or "none" if isinstance(columns, dict) else "none"


def one_line(error: Exception) -> str:
    """The text of an error in one line of at most 300 letters."""
    return " ".join(str(error).split())[:300]
