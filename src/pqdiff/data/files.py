"""Write files and folders so that they appear complete or not at all, and find out before the work whether they can."""

import contextlib
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

_PREFIX = ".pqdiff-"  # of temporary names; short, so that they fit wherever the final names do


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Give the block a temporary path beside `path` to write to; if the block succeeds, that file becomes `path`.

    An existing file is replaced, and a link stays a link, to the new file. If the block fails, all stays as it was.

    Raises:
        ValueError: see `check_new_file`.
    """
    check_new_file(path, force=True)
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=_PREFIX, suffix=path.suffix[-64:], dir=path.parent)
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
    """Give the block a temporary folder to fill; if the block succeeds, that folder becomes `path`.

    An empty folder that is there stays the same folder, as a mount point or the place where a shell is must: the files
    move into it.

    Raises:
        ValueError: see `check_new_folder`.
    """
    path = Path(path)
    check_new_folder(path)
    with _temporary_folder(path if path.exists() else path.parent) as temporary:
        yield temporary
        _open_permissions(temporary)
        if not path.exists():
            temporary.rename(path)
            return
        entries = list(temporary.iterdir())
        if set(path.iterdir()) - {temporary}:
            raise ValueError(f"{path}: other files came while it was written; choose another name")
        for entry in entries:
            entry.rename(path / entry.name)


@contextlib.contextmanager
def updated_folder(path: str | Path) -> Iterator[Path]:
    """As `atomic_folder`, but `path` may hold files. Those of the same names are replaced one by one, the others stay."""
    path = Path(path)
    with _temporary_folder(path.parent) as temporary:
        yield temporary
        _open_permissions(temporary)
        if not path.exists():
            temporary.rename(path)
            return
        for entry in sorted(entry for entry in temporary.rglob("*") if entry.is_file()):
            target = path / entry.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            entry.replace(target)


def check_new_file(path: str | Path, force: bool = False) -> None:
    """Check before the work that a file can be written to `path`.

    Args:
        path: where the file is going to be. Folders on the way need not exist.
        force: whether a file that is there may be replaced.

    Raises:
        ValueError: if there is a file and not `force`, or a folder or a device, or if nothing can be written there.
    """
    found = _status(path)
    if found is not None and not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "a device, a pipe or a socket"
        raise ValueError(f"{path} is {kind}: give a file")
    if found is not None and not force:
        raise ValueError(f"{path} exists already: add --force to replace it, or choose another name")
    _check_writable(path)


def check_new_folder(path: str | Path) -> None:
    """Check before the work that a folder can be written to `path`.

    Raises:
        ValueError: if `path` exists and is not an empty folder, or if nothing can be written there.
    """
    found = _status(path)
    if found is None and os.path.islink(path):
        raise ValueError(f"{path} is a link to nothing; choose another name, or remove it")
    if found is not None and (not stat.S_ISDIR(found.st_mode) or any(Path(path).iterdir())):
        raise ValueError(f"{path}: exists already; choose another name, or remove it")
    _check_writable(Path(path) / "file")


def _status(path: str | Path) -> os.stat_result | None:
    """What is at `path`, or None; ValueError for names that cannot be."""
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # too long, a file on the way, links in a circle, a zero byte
        raise ValueError(f"{str(path)!r} cannot be written ({getattr(error, 'strerror', None) or error})") from None


def _check_writable(path: str | Path) -> None:
    parent = Path(os.path.realpath(path)).parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ValueError(f"{path} cannot be written: {parent} is not a folder that can be written to")


@contextlib.contextmanager
def _temporary_folder(parent: Path) -> Iterator[Path]:
    """A folder that is gone after the block, unless it was given another name."""
    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=parent))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_permissions(folder: Path) -> None:
    """Temporary files and folders are private, also those through which other libraries write."""
    for entry in (folder, *folder.rglob("*")):
        entry.chmod((0o777 if entry.is_dir() else 0o666) & ~_umask())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
