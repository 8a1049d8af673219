"""Peak memory of a call, counted allocation by allocation."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch


def peak_tensor_bytes(function: Callable[[], object]) -> int:
    """Most bytes of CPU tensors alive at once beyond those alive before `function` ran, its results included.

    Deterministic, unlike the resident set. Call `function` once before, so that one-time allocations do not count.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        result = function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    del result
    return peak


def peak_resident_bytes(function: Callable[[], object]) -> int | None:
    """Growth of the process's resident memory while `function` runs, whoever allocates; None where Linux is not.

    Memory that was free inside the process before does not count, so it is rather too small. Call `function` once before.
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        gc.collect()  # what is garbage already must not be freed while the function runs
        reset.write_text("5")  # the peak so far is forgotten
        before = _kilobytes(status.read_text(), "VmRSS")
        result = function()
        peak = _kilobytes(status.read_text(), "VmHWM")
    except OSError:
        return None
    del result
    return max(0, peak - before) * 1024


def _kilobytes(status: str, key: str) -> int:
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith(key))
