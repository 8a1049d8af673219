"""Builds search.cpp on its first use with the compiler of the machine, and keeps the result in the user's cache folder.

It needs no build system and no torch headers: it is one file with a C interface that compiles in a second or two. Every
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
import subprocess
import tempfile
from pathlib import Path

logger = logging.getLogger(__name__)

SOURCE = Path(__file__).with_name("search.cpp")
# Both scans must round alike, so the source names every fused multiply-add and the compiler may not make others.
FLAGS = ["-std=c++17", "-O3", "-fno-math-errno", "-ffp-contract=off", "-fPIC", "-shared"]
OPTIONAL_FLAGS = [["-march=native", "-fopenmp"], ["-march=native"], ["-fopenmp"], []]  # the first that compiles
TIMEOUT = 120  # seconds per attempt


class NativeUnavailable(Exception):
    """The native search cannot be used; the message is one line that says why."""


def load_library() -> ctypes.CDLL:
    """The compiled search: from the cache if it is there, else it is built now.

    Raises:
        NativeUnavailable: if there is no compiler, the cache folder cannot be written, or compiling or loading fails.
    """
    compiler = find_compiler()
    try:
        path = cache_folder() / library_name(compiler)
        if path.is_file():
            with contextlib.suppress(OSError):  # a damaged file is built again
                return ctypes.CDLL(str(path))
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _lock(path.with_suffix(".lock")):
            return _load_or_build(path, compiler)
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
    """File name that changes with the source, the flags, the compiler and the features of this CPU."""
    source = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, OPTIONAL_FLAGS)).encode()).hexdigest()[:12]
    binary = Path(compiler[0]).resolve()
    stat = binary.stat()
    builder = [*compiler, str(binary), stat.st_size, stat.st_mtime_ns, platform.machine(), _cpu_flags()]
    return f"search-{source}-{hashlib.sha256(repr(builder).encode()).hexdigest()[:12]}.so"


def _load_or_build(path: Path, compiler: list[str]) -> ctypes.CDLL:
    if path.is_file():  # another process built it while this one waited for the lock
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            path.unlink()
    descriptor, temporary = tempfile.mkstemp(suffix=".so", dir=path.parent)
    os.close(descriptor)
    try:
        _compile(compiler, temporary)
        library = ctypes.CDLL(temporary)
        os.replace(temporary, path)  # so that the final name never holds a half-written library
    finally:
        Path(temporary).unlink(missing_ok=True)
    logger.info("Built the native search: %s", path)
    return library


def _compile(compiler: list[str], output: str) -> None:
    error = ""
    for optional in OPTIONAL_FLAGS:
        command = [*compiler, *FLAGS, *optional, "-o", output, str(SOURCE)]
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


@contextlib.contextmanager
def _lock(path: Path):
    """Lets one build run at a time. Where the system has no file locks, two builds do the same work."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with open(path, "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _one_line(text: object) -> str:
    return " ".join(str(text).split())[:300] or "no message"
