"""Times of calls that take turns, so that a busy machine slows all of them alike."""

import contextlib
import statistics
import time
from collections.abc import Callable, Mapping

import torch

CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
SHORT = 0.05  # seconds: a shorter call follows an untimed one of its own, since others' calls have emptied the caches


def interleaved_times(
    calls: Mapping[str, Callable[[], object]],
    least_rounds: int,
    seconds: float = 0.0,
    most_rounds: int = 31,
    contexts: Mapping[str, Callable[[], contextlib.AbstractContextManager]] | None = None,
    repeats: int = 1,
    device: str | torch.device = "cpu",
    warm_up: bool = True,
    clock: str = "wall",
) -> dict[str, list[float]]:
    """Seconds of every call in every round but a first, which warms up; every other round runs backwards.

    Calls shorter than `SHORT` are timed right after an untimed call of the same: their time is what the code takes, not
    what the call before them left in the caches.

    Args:
        calls: what to time, by name. Their results are freed outside of the timed stretch.
        least_rounds: so many rounds at least, warm-up not counted.
        seconds: further rounds until all together took so long.
        most_rounds: never more.
        contexts: what surrounds a call, by its name, entered and left untimed.
        repeats: calls in a row that share one measurement: on a GPU, where one call is shorter than waiting for it.
        device: a CUDA device is waited for.
        warm_up: whether there is a first round that does not count.
        clock: one of `CLOCKS`; `processor` is for one thread on a busy machine, whose waiting it does not count.

    Raises:
        ValueError: if `least_rounds` or `repeats` is below 1, or there is no such clock.
    """
    if clock not in CLOCKS:
        raise ValueError(f"clock ({clock!r}) must be one of {', '.join(CLOCKS)}")
    for name, value in (("least_rounds", least_rounds), ("repeats", repeats)):
        if value < 1:
            raise ValueError(f"{name} ({value}) must be at least 1")
    wait = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    now = CLOCKS[clock]
    times: dict[str, list[float]] = {name: [] for name in calls}
    names, spent, done = list(calls), 0.0, -int(warm_up)
    latest: dict[str, float] = {}
    while done < least_rounds or (spent < seconds and done < most_rounds):
        for name in names if done % 2 else reversed(names):
            with (contexts or {}).get(name, contextlib.nullcontext)():
                if latest.get(name, SHORT) < SHORT:
                    calls[name]()
                wait()
                start = now()
                for _ in range(repeats):
                    result = calls[name]()
                wait()
                elapsed = now() - start
                del result
            latest[name] = elapsed / repeats
            if done >= 0:
                times[name].append(elapsed / repeats)
                spent += elapsed
        done += 1
    return times


def summary(times: Mapping[str, list[float]], digits: int = 4) -> dict[str, dict[str, float]]:
    """Median and minimum in milliseconds by name."""
    return {
        name: {
            "median": round(statistics.median(values) * 1e3, digits),
            "minimum": round(min(values) * 1e3, digits),
        }
        for name, values in times.items()
    }
