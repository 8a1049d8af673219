"""Files of metrics, as cards show them."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

Rows = list[tuple[str, float | None]]


def metric_rows(metrics: Mapping[str, Any]) -> Rows:
    """Names and numbers of `metrics["metrics"]`; those of mappings inside it get names with points.

    Raises:
        ValueError: if there is no such mapping, or something in it is neither a number nor None.
    """
    if not isinstance(metrics.get("metrics"), Mapping):
        raise ValueError(f"metrics must map 'metrics' to named numbers, got the keys {', '.join(map(str, metrics))}")
    return _flatten(metrics["metrics"], "")


def measured_on(metrics: Mapping[str, Any]) -> str:
    """A sentence of `num_images`, `num_prompts`, `data` and `protocol`, as far as they are there."""
    counts = [f"{metrics[key]:,} {key[4:]}" for key in ("num_images", "num_prompts") if key in metrics]
    protocol = metrics.get("protocol") or {}
    parts = [", ".join(counts), metrics.get("data", ""), ", ".join(f"{key}: {protocol[key]}" for key in protocol)]
    return "; ".join(part for part in parts if part) + "." if any(parts) else "On what is not recorded."


def eval_results(metrics: Mapping[str, Any], rows: Rows) -> list[EvalResult] | None:
    """For the metadata, which demands the name of a data set; None if there is none or no number."""
    if not metrics.get("data"):
        return None
    return [
        EvalResult("text-to-image", "prompts", metrics["data"], key, round(value, 6), metric_name=key)
        for key, value in rows
        if value is not None
    ] or None


def _flatten(numbers: Mapping[str, Any], prefix: str) -> Rows:
    rows: Rows = []
    for key, value in numbers.items():
        if isinstance(value, Mapping):
            rows += _flatten(value, f"{prefix}{key}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            rows.append((f"{prefix}{key}", value))
        else:
            raise ValueError(f"metrics: {prefix}{key} ({value!r}) must be a number or null")
    return rows
