"""How a trainer ends early: by signals, after which its state is saved, and by errors, told in one line."""

import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable

from safetensors import SafetensorError

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PATIENCE = 3.0  # seconds: within them, a second signal is the launcher's copy of the first one


class TrainingStopped(Exception):
    """The run was asked to stop and its state is on disk; the message says where."""


class StopSignals:
    """Takes over SIGINT and SIGTERM: the first one asks for a stop, a later one stops at once."""

    def __init__(self):
        self._asked_at: float | None = None
        self._handlers = {number: signal.signal(number, self._on_signal) for number in SIGNALS}

    @property
    def stop_asked(self) -> bool:
        """Whether this process got a signal."""
        return self._asked_at is not None

    def restore(self) -> None:
        """Give the signals back to the handlers that had them before."""
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame) -> None:
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
        elif now - self._asked_at > _PATIENCE:
            raise KeyboardInterrupt  # the user asked twice


def run(main: Callable[[], None]) -> None:
    """Call a trainer's `main`.

    A user's mistake, or a stop that was asked for, ends the process with one line instead of a traceback. In every case
    signals get their former handlers back and data loader workers are ended.
    """
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        try:
            main()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # frees the data loader, which then ends its workers
            raise
    except (ValueError, OSError, TrainingStopped, SafetensorError) as error:
        sys.exit(f"{error}")
    except KeyboardInterrupt:
        sys.exit("stopped at once: the steps after the last checkpoint are lost")
    finally:
        for child in multiprocessing.active_children():
            if child.daemon:  # a stuck worker: Python would wait for it, and it ignores SIGTERM
                child.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)
