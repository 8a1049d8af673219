"""Builds search.cpp on its first use with the compiler of the machine, and keeps the result in the user's cache folder.

It needs no build system and no torch headers: one file and its headers, with a C interface, compile in seconds. Every
failure becomes a `NativeUnavailable` with a reason in one line.
"""

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
SOURCE, HEADERS = _FOLDER / "search.cpp", sorted(_FOLDER.glob("*.h"))
# Both scans must round alike, so the source names every fused multiply-add and the compiler may not make others.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared"]
OPTIONAL_FLAGS = [["-march=native", "-fopenmp"], ["-march=native"], ["-fopenmp"], []]  # the first that compiles
TIMEOUT = 120  # seconds per attempt


class NativeUnavailable(Exception):
    """The native search cannot be used; the message is one line that says why."""


def load_library() -> ctypes.CDLL:
    """The compiled search: from the cache if it is there, else it is built now.

    A library is loaded only if nobody but this user and root can have written it and its bytes have the digest that is
    part of its name. If others may write to the cache folder, it is not used: every process builds its own library.

    Raises:
        NativeUnavailable: if there is no compiler, the cache folder cannot be written, or compiling or loading fails.
    """
    compiler = find_compiler()
    try:
        folder = cache_folder()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        unsafe = _open_to_others(folder.resolve())
        if unsafe:
            logger.warning("Others may write to %s: the native search is built anew in every process.", unsafe)
            with tempfile.TemporaryDirectory() as private:
                return _build(Path(private), compiler)
        for path in folder.glob(f"{library_name(compiler)}-*.so"):
            library = _load_checked(path)
            if library is not None:
                return library
            path.unlink(missing_ok=True)
        return _build(folder, compiler)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder
        raise NativeUnavailable(_one_line(error)) from error


def cache_folder() -> Path:
    """`PQDIFF_CACHE` if set, else `pqdiff` in the user's cache folder."""
    if os.environ.get("PQDIFF_CACHE"):
        return Path(os.environ["PQDIFF_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pqdiff"


def find_compiler() -> list[str]:
    """Command of the C++ compiler: `CXX` if it is set, else the first of c++, g++ and clang++ that exists."""
    for command in [shlex.split(os.environ["CXX"])] if os.environ.get("CXX") else [["c++"], ["g++"], ["clang++"]]:
        if command and shutil.which(command[0]):
            return [shutil.which(command[0]), *command[1:]]
    raise NativeUnavailable(f"no C++ compiler (CXX={os.environ['CXX']})" if "CXX" in os.environ else "no C++ compiler")


def library_name(compiler: list[str]) -> str:
    """Begin of a file name: it changes with the source, the flags, the compiler and the features of this CPU."""
    parts = [*(path.read_bytes() for path in (SOURCE, *HEADERS)), repr((FLAGS, OPTIONAL_FLAGS)).encode()]
    source = hashlib.sha256(b"".join(parts)).hexdigest()[:12]
    binary = Path(compiler[0]).resolve()
    status = binary.stat()
    builder = [*compiler, str(binary), status.st_size, status.st_mtime_ns, platform.machine(), _cpu_flags()]
    return f"search-{source}-{hashlib.sha256(repr(builder).encode()).hexdigest()[:12]}"


def _open_to_others(folder: Path) -> Path | None:
    """The first of a folder and those above it to which another user may write. In a folder like /tmp nobody can rename
    what is not his."""
    for path in (folder, *folder.parents):
        status = path.stat()
        if not _is_ours(status) and not (path != folder and status.st_mode & stat.S_ISVTX and _has_our_owner(status)):
            return path
    return None


def _is_ours(status: os.stat_result) -> bool:
    """Whether only this user and root may write."""
    others = stat.S_IWOTH if _is_private_group(status.st_gid) else stat.S_IWGRP | stat.S_IWOTH
    return os.name != "posix" or (_has_our_owner(status) and not status.st_mode & others)


def _is_private_group(group: int) -> bool:
    """Whether this user alone is in the group: many systems give every user one, and let it write."""
    with contextlib.suppress(ImportError, KeyError):
        import grp
        import pwd

        user, members = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
        return (group, members.gr_name) == (user.pw_gid, user.pw_name) and set(members.gr_mem) <= {user.pw_name}
    return False


def _has_our_owner(status: os.stat_result) -> bool:
    return status.st_uid in (0, os.getuid())


def _load_checked(path: Path) -> ctypes.CDLL | None:
    """The library, or None if it is not whole, not ours or cannot be loaded."""
    with contextlib.suppress(OSError):
        status = path.lstat()  # of a link, not of what it points to
        if stat.S_ISREG(status.st_mode) and _is_ours(status) and path.stem.endswith(_digest(path)):
            return ctypes.CDLL(str(path))
    return None


def _build(folder: Path, compiler: list[str]) -> ctypes.CDLL:
    """Two processes may build at a time: each writes its own file, and the last one takes the name."""
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=folder)
    os.close(descriptor)
    try:
        _compile(compiler, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        library = ctypes.CDLL(temporary)
        path = folder / f"{library_name(compiler)}-{_digest(Path(temporary))}.so"
        os.chmod(temporary, 0o700)  # compilers go by the umask
        os.replace(temporary, path)  # so that the final name never holds a half-written library
    finally:
        Path(temporary).unlink(missing_ok=True)
    logger.info("Built the native search: %s", path)
    return library


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler: list[str], output: str) -> None:
    error = ""
    for optional in OPTIONAL_FLAGS:
        command = [*compiler, *FLAGS, *optional, "-I", str(_FOLDER), "-o", output, str(SOURCE)]
        try:
            result = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            raise NativeUnavailable(f"{compiler[0]} did not finish in {TIMEOUT} s") from None
        if result.returncode == 0:
            return
        error = next((line for line in result.stderr.splitlines() if "error" in line), result.stderr)
    raise NativeUnavailable(f"{compiler[0]} failed: {_one_line(error)}")


def _cpu_flags() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        return next((line for line in file if line.lower().startswith(("flags", "features"))), "")
    return platform.processor()


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300] or "no message"
