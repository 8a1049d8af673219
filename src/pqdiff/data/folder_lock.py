"""One process at a time writes to a folder."""

import fcntl
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

_PATIENCE = 10.0  # seconds to wait: workers of a run that was killed end after five


def lock_folder(folder: Path, owner: object) -> Callable[[], None]:
    """Make a folder that `owner` alone writes to, until the function that is returned is called or the owner is gone.

    Raises:
        ValueError: if another one writes to it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle, deadline = os.open(folder, os.O_RDONLY), time.monotonic() + _PATIENCE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the folder itself: there is no file to leave behind
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(handle)
                raise ValueError(f"{folder}: another process writes to it; wait, or choose another folder") from None
            time.sleep(0.1)
        except OSError:  # a network drive without locks
            break
    return weakref.finalize(owner, os.close, handle)
