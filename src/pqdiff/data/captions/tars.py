"""Samples in tar files of the webdataset convention: files that share a name up to the first dot belong together.

The library `datasets` looks at five samples to find out which fields there are, reads one image of `photo.0.jpg`,
`photo.1.jpg`, and takes a file of the working folder for one of the same name in the tar; so tars are read here.
"""

import tarfile
from collections.abc import Iterator

from pqdiff.data.captions.metadata import CAPTION_COLUMNS, captions_in, names_of, one_line
from pqdiff.data.images.opening import IMAGE_SUFFIXES
from pqdiff.json_text import parse_json

_MOST_BYTES = 2**28  # of the files of one sample, which are in memory together
_MOST_TEXT = 2**20  # bytes of captions, of a name, or of what else tarfile reads before it says that there is a file
IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "jfif", "png", "webp", "photo")  # which of several images is the one


def tar_rows(files: list, image_column: str | None, caption_column: str | None) -> Iterator[dict]:
    """Every image with its name and captions: `__key__`, `image` as `datasets.Image` stores it, `captions`.

    Args:
        files: each a tuple that begins with a path or address of a tar file; what follows only tells versions apart.
        image_column: name of the image after the key, such as `jpg` or `mask.png`; None takes the only one, each of
            several numbered ones (`0.jpg`, `1.jpg`), or the one that has no other name than its kind.
        caption_column: name of the captions after the key, such as `txt` or `json`; None takes the usual names.

    Raises:
        ValueError: naming the sample, if it has several images, captions that cannot be read, or more than 256 MiB: a few
            compressed bytes, or a sparse file, can stand for any size.
    """
    from datasets.utils.file_utils import xopen  # opens files on this machine and on the Hub

    for path, *_ in files:
        with xopen(path, "rb") as file, tarfile.open(fileobj=file, mode="r|*", tarinfo=_Member) as tar:
            key, fields, size = None, {}, 0
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                base, _, field = name.partition(".")
                if not member.isfile() or not base:
                    continue
                if (folder, base) != key:
                    yield from _rows(key, fields, image_column, caption_column)
                    key, fields, size = (folder, base), {}, 0
                size += member.size + tarfile.BLOCKSIZE
                if size > _MOST_BYTES:
                    raise ValueError(f"{member.name}: its sample has more than {_MOST_BYTES:,} bytes")
                fields[field.lower()] = tar.extractfile(member).read()
            yield from _rows(key, fields, image_column, caption_column)


class _Member(tarfile.TarInfo):
    """An entry of a tar file, whose header has a bounded size."""

    @classmethod
    def frombuf(cls, buf, encoding, errors):
        member = super().frombuf(buf, encoding, errors)
        if not member.isfile() and member.size > _MOST_TEXT:
            raise ValueError(f"{member.name}: has a header of {member.size:,} bytes")
        return member


def _rows(key: tuple | None, fields: dict, image_column: str | None, caption_column: str | None) -> Iterator[dict]:
    if not fields:
        return
    name = "/".join(filter(None, key))
    for argument, column in (("image_column", image_column), ("caption_column", caption_column)):
        if column and column.lower() not in fields:
            raise ValueError(f"{name}: has no {argument} ({column}); columns: {names_of(fields)}")
    for image in [image_column.lower()] if image_column else _images(name, fields):
        part, _, _ = image.rpartition(".")
        own = f"{part}." if part else ""
        texts = [caption_column.lower()] if caption_column else [*(f"{own}{text}" for text in _TEXTS), *_TEXTS]
        found = next((text for text in texts if text in fields), None)
        yield {
            "__key__": f"{name}.{part}" if part.isdigit() else name,
            "image": {"bytes": fields[image], "path": None},
            "captions": _captions(name, found, fields[found]) if found else (),
        }


_TEXTS = (*CAPTION_COLUMNS, "json")


def _images(name: str, fields: dict) -> list[str]:
    """The fields that hold the images of a sample."""
    kinds = {field: field.rpartition(".") for field in fields if f".{field.rpartition('.')[2]}" in IMAGE_SUFFIXES}
    chosen = [field for field, (part, _, _) in kinds.items() if not part or part.isdigit()]
    chosen = chosen or [field for field, (part, _, _) in kinds.items() if part in IMAGE_COLUMNS] or list(kinds)
    if len(chosen) - sum(kinds[field][0].isdigit() for field in chosen) > 1:
        raise ValueError(f"{name}: has several images ({', '.join(chosen)}): give one of them as image_column")
    return chosen


def _captions(name: str, field: str, content: bytes) -> tuple[str, ...]:
    where = f"{name}.{field}"
    if len(content) > _MOST_TEXT:
        raise ValueError(f"{where}: has {len(content):,} bytes, which no caption has")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{where}: is not text in UTF-8") from None
    if field.rpartition(".")[2] == "json":
        try:
            text = parse_json(text)
        except ValueError as error:
            raise ValueError(f"{where}: cannot be read ({one_line(error)})") from None
    return captions_in(where, text)
