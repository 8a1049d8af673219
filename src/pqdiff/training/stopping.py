"""How a trainer ends early: by signals, after which its state is saved, and by errors, told in one line."""

import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator

from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError

from pqdiff.clean_text import one_line

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
    hub_logging.set_verbosity_error()  # its warnings show addresses with their passwords
    try:
        try:
            main()
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)  # frees the data loader, which then ends its workers
            raise
    except (ValueError, OSError, TrainingStopped, SafetensorError) as error:
        sys.exit(one_line(error))
    except KeyboardInterrupt:
        sys.exit("stopped at once: the steps after the last checkpoint are lost")
    finally:
        for child in multiprocessing.active_children():
            if child.daemon:  # a stuck worker: Python would wait for it, and it ignores SIGTERM
                child.kill()
        for number, handler in handlers.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def end_in_one_line(name: str) -> Iterator[None]:
    """End a script that goes on when it is called again: a user's mistake with one line and exit code 2, signals with 130.

    Args:
        name: of the script, with which the line begins.
    """
    hub_logging.set_verbosity_error()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (ValueError, OSError, SafetensorError) as error:
        print(f"{name}: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)
