"""Write files and folders so that they appear complete or not at all."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give the block a temporary path beside `path` to write to; if the block succeeds, that file becomes `path`.

    An existing file is replaced; if the block fails, it stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give the block a temporary folder beside `path` to fill; if the block succeeds, that folder becomes `path`.

    Raises:
        ValueError: if `path` exists and is not an empty folder.
    """
    path = Path(path)
    check_new_folder(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        # Temporary files and folders are private, also those through which other libraries write.
        for entry in (temporary, *temporary.rglob("*")):
            entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())
        if path.exists():
            path.rmdir()
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def check_new_folder(path: str | Path) -> None:
    """Check that a folder can be written to `path`.

    Raises:
        ValueError: if `path` exists and is not an empty folder.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path}: exists already; choose another name, or remove it")


def readable(name: str | Path) -> str:
    """A name for people, messages and UTF-8 files: control characters and bytes that are not UTF-8 are escaped."""
    text = os.fsencode(name).decode(errors="backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
