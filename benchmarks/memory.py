"""Peak memory of a call, counted allocation by allocation."""

from collections.abc import Callable

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
