"""The folder of a run: one run at a time writes to it, and it knows which of its entries the run itself has made."""

import fcntl
import os
import shutil
import stat
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

RESULTS = ("autoencoder", "discriminator", "pipeline", "vae")  # what trainers leave in the folder of a run
MARKER = ".pqdiff-run"  # the names of the run's own entries, one a line; locked while the run lives


class RunFolder:
    """Takes a folder for a run, and keeps what is not the run's own from being changed.

    The lock belongs to the process and ends with it, however it ends.

    Attributes:
        path: the folder.
        is_locked: whether this process has the lock: that of the main process alone.

    Args:
        path: a folder that does not exist, is empty, or was taken by a run before.
        lock: whether to check and lock it; ranks beside the main process do not.

    Raises:
        ValueError: if the folder holds other files, or another process trains in it. Then nothing was changed.
        OSError: if the folder cannot be made.
    """

    def __init__(self, path: str | Path, lock: bool = True):
        self.path, self.is_locked = Path(path), lock
        path = self.path
        marker = path / MARKER
        if lock and path.exists() and not path.is_dir():
            raise ValueError(f"--output_dir {path} is a file: give a folder")
        if lock and path.is_dir() and not os.path.lexists(marker) and any(path.iterdir()):
            raise ValueError(
                f"--output_dir {path} holds files that are not of a training run (it has no {MARKER}): give a new folder"
            )
        path.mkdir(parents=True, exist_ok=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._file = open(marker, "rb+", buffering=0, opener=lambda name, _: os.open(name, flags, 0o666))  # noqa: SIM115
        except OSError as error:
            raise ValueError(f"{marker} cannot be opened ({error.strerror})") from None
        if not stat.S_ISREG(os.fstat(self._file.fileno()).st_mode):
            raise ValueError(f"{marker} is not a file")
        if lock:
            self._lock()

    def check_use(self, has_checkpoints: bool, resume: bool) -> None:
        """Find out before the first step what would fail after the last one.

        Raises:
            ValueError: if there are checkpoints or results and the run is not to be resumed, or if something that the run
                has not made is in the place of what it writes.
        """
        results = [name for name in RESULTS if self.owns(name) and (self.path / name).exists()]
        if (has_checkpoints or results) and not resume:
            held = "checkpoints" if has_checkpoints else "the result"
            raise ValueError(
                f"--output_dir {self.path} holds {held} of another run: add --resume to continue that run, or choose "
                "another folder"
            )
        globs = map(self.path.glob, ("checkpoint-[0-9]*", ".checkpoint-*.partial"))
        checkpoints = [path.name for paths in globs for path in paths]
        for name in ("data.json", "validation", "init", "tokenizer", "logs", *RESULTS, *checkpoints):
            self.check(name)

    def check(self, name: str) -> None:
        """Check that the run may make an entry of this name, or has made it before.

        Raises:
            ValueError: if there is one that the run has not made.
        """
        path = self.path / name
        if os.path.lexists(path) and not self.owns(name):
            raise ValueError(f"{path} is not of this run, which would replace it: move it away, or remove it")

    def claim(self, name: str) -> Path:
        """Path of an entry that the run is about to make or replace. See `check`."""
        self.check(name)
        if not self.owns(name):
            os.write(self._file.fileno(), f"{name}\n".encode())
        return self.path / name

    def owns(self, name: str) -> bool:
        """Whether the run has claimed this name. What is being written or removed, `.NAME.partial`, goes with NAME."""
        # Not by opening the file again: the lock would end with the second handle.
        handle = self._file.fileno()
        names = os.pread(handle, os.fstat(handle).st_size, 0).decode(errors="replace").split("\n")
        return name.removeprefix(".").removesuffix(".partial") in names[:-1]

    def remove(self, path: Path) -> None:
        """Remove a folder of the run."""
        if self.owns(path.name):
            shutil.rmtree(path)

    def _lock(self) -> None:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(
                f"--output_dir {self.path}: another run is working in it; wait for its end, or choose another folder"
            ) from None
        except OSError as error:
            raise ValueError(
                f"--output_dir {self.path}: its file system cannot lock files ({error.strerror})"
            ) from None


def take_folder(accelerator: Accelerator, path: Path) -> RunFolder:
    """The folder of a run, for all ranks. If the main process cannot have it, no rank can."""
    folder, problem = None, [None]
    if accelerator.is_main_process:
        try:
            folder = RunFolder(path)
        except (ValueError, OSError) as error:
            problem = [str(error)]
    if accelerator.num_processes > 1:
        broadcast_object_list(problem)
    if problem[0]:
        raise ValueError(problem[0])
    return folder or RunFolder(path, lock=False)
