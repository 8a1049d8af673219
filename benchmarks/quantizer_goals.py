"""What the quantizer's speed should reach, beside what a result file of `quantizer_speed.py` says."""

from typing import NamedTuple

_F8, _F16, _F8_LARGE = "f8-256", "f16-256", "f8-768"
UNPROVEN = "unproven: no GPU"
_NOT_MEASURED = "not measured in this run"


class Ratio(NamedTuple):
    """`slow` should take at least `goal` times as long as `fast`, on one thread."""

    action: str
    config: str
    slow: str
    fast: str
    goal: float


# A straightforward loop has no search apart from its layer, so whole layers are compared; faiss only searches.
RATIOS = (
    Ratio("forward", _F8, "loop", "plain", 5),
    Ratio("forward", _F8, "loop", "compiled", 12),
    Ratio("forward", _F8, "loop", "native", 40),
    Ratio("search", _F8, "faiss", "native", 2),
    Ratio("search", _F8, "faiss", "compiled", 0.5),
    Ratio("forward_backward", _F8, "loop", "plain", 4),
    Ratio("forward_backward", _F8, "loop", "native", 20),
    Ratio("forward_backward", _F8, "VectorQuantize", "plain", 15),
    Ratio("forward_backward", _F8, "VectorQuantize", "native", 80),
    Ratio("forward", _F16, "loop", "plain", 2.5),
    Ratio("forward", _F16, "loop", "native", 15),
)
MEMORY_MEGABYTES = 32
CPU_SHARE = 0.01
GPU_SHARES = {"eager": 0.03, "cuda_graph": 0.01}
GPU_LAUNCHES = 6


def goals(document: dict) -> list[dict]:
    """One row per goal: `what`, `goal`, `measured` and `reached`, both None with a `note` if it was not measured."""
    cells, rows = document["cells"]["1"], []
    for ratio in RATIOS:
        times = cells.get(ratio.config, {}).get(ratio.action, {}).get("milliseconds", {})
        slow, fast = times.get(ratio.slow), times.get(ratio.fast)
        measured = {key: round(slow[key] / fast[key], 2) for key in slow} if slow and fast else None
        what = f"{ratio.action}, {ratio.config}: {ratio.slow} / {ratio.fast}, at least"
        rows.append(_row(what, ratio.goal, measured, measured and measured["median"] >= ratio.goal))
    memory = document.get("memory") or {}
    for name in ("plain", "native"):
        peaks = memory.get("peak_extra_megabytes", {}).get(name) if memory.get("config") == _F8_LARGE else None
        measured = max(peak for peak in peaks.values() if peak is not None) if peaks else None
        rows.append(_at_most(f"peak extra MB of {name} at {_F8_LARGE}", MEMORY_MEGABYTES, measured))
    whole = not document["quick"]
    shares = (document.get("share") or {}).get("share", {}) if whole else {}
    for name in ("plain", "native"):
        what = f"share of {name} in the autoencoder's forward pass on the CPU"
        rows.append(_at_most(what, CPU_SHARE, shares.get(name)))
    gpu = (document.get("gpu") or {}).get("share", {}).get("1", {}) if whole else {}
    for mode, goal in GPU_SHARES.items():
        what = f"share of triton in the autoencoder's forward pass on a GPU, bf16, {mode}"
        rows.append(_at_most(what, goal, gpu.get(mode, {}).get("share", {}).get("triton"), UNPROVEN))
    launches = gpu.get("launches", {}).get("triton", {}).get("eager")
    rows.append(_at_most("launches of triton per forward pass on a GPU", GPU_LAUNCHES, launches, UNPROVEN))
    return rows


def _at_most(what: str, goal: float, measured: float | None, why_not: str = _NOT_MEASURED) -> dict:
    return _row(f"{what}, at most", goal, measured, measured is not None and measured <= goal, why_not)


def _row(what: str, goal: float, measured, reached, why_not: str = _NOT_MEASURED) -> dict:
    if measured is None:
        return {"what": what, "goal": goal, "measured": None, "reached": None, "note": why_not}
    return {"what": what, "goal": goal, "measured": measured, "reached": bool(reached)}
