"""Measurements as cards show them: files of metrics, and statistics of latents."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult

Rows = list[tuple[str, float | None]]
_NOISE_LEVELS = (0.0, 0.03, 0.1, 0.3, 0.5, 1.0)  # those in a card
_SNAPPING = {"snapped": "snapped to the nearest codewords", "free": "not snapped"}


def metric_rows(metrics: Mapping[str, Any]) -> Rows:
    """Names and numbers of `metrics["metrics"]`. Numbers of inner mappings get names with points, such as `fid.photos`.

    Raises:
        ValueError: if there is no such mapping, or a value in it is neither a number nor None.
    """
    if not isinstance(metrics.get("metrics"), Mapping):
        raise ValueError(f"metrics must map 'metrics' to named numbers, got the keys {', '.join(map(str, metrics))}")
    return _flatten(metrics["metrics"], "")


def measured_on(metrics: Mapping[str, Any]) -> str:
    """A sentence made of those of `num_images`, `num_prompts`, `data` and `protocol` that are given."""
    counts = [f"{metrics[key]:,} {key[4:]}" for key in ("num_images", "num_prompts") if key in metrics]
    protocol = metrics.get("protocol") or {}
    parts = [", ".join(counts), metrics.get("data", ""), ", ".join(f"{key}: {protocol[key]}" for key in protocol)]
    return "; ".join(part for part in parts if part) + "." if any(parts) else "On which images was not recorded."


def eval_results(metrics: Mapping[str, Any], rows: Rows) -> list[EvalResult] | None:
    """Metadata of the Hub, which must name a data set; None if there is no name or no number."""
    if not metrics.get("data"):
        return None
    return [
        EvalResult("text-to-image", "prompts", metrics["data"], key, round(value, 6), metric_name=key)
        for key, value in rows
        if value is not None
    ] or None


def latent_rows(latents: Mapping[str, Any], expected: str) -> str:
    """Markdown of what `benchmarks/latent_stats.py` measured on one model.

    Args:
        latents: the entry of the model in its result, with `num_images`, `data` and `resolution` of the whole result.
        expected: fingerprint of the model.

    Raises:
        ValueError: if the fingerprints differ.
    """
    if latents["fingerprint"] != expected:
        raise ValueError(
            f"latents were measured on a model with fingerprint {latents['fingerprint']}, this one has {expected}: "
            "run benchmarks/latent_stats.py again"
        )
    channels, positions, noise = latents["latents"], latents["positions"], latents["psnr_under_noise"]
    levels = [level for level in noise if float(level) in _NOISE_LEVELS]
    power = " / ".join("-" if value is None else f"{value:g}" for value in positions["power"].values())
    neighbors = positions["lag_1_autocorrelation"]
    rows = [
        ("variance of the channels, smallest / median / largest",
         " / ".join(f"{channels[f'variance_{key}']:.3g}" for key in ("min", "median", "max"))),
        ("correlation of two channels, mean of the absolute values", f"{channels['mean_abs_correlation']:.3f}"),
        (f"effective rank of the {len(channels['channel_variance'])} channels: of covariance, of correlation",
         f"{channels['effective_rank']:.1f}, {channels['effective_rank_of_correlation']:.1f}"),
        ("correlation of neighboring positions", "-" if neighbors is None else f"{neighbors:.3f}"),
        (f"power at {' / '.join(positions['power'])} spatial frequencies, relative to white noise", power),
    ]  # fmt: skip
    for kind in noise[levels[0]] if levels else ():
        title = f"PSNR in dB with noise of {' / '.join(levels)} on the latents, {_SNAPPING.get(kind, kind)}"
        rows.append((title, " / ".join(f"{noise[level][kind]:.1f}" for level in levels)))
    return "\n".join(
        [
            f"Standardized latents of {latents['num_images']} images ({latents['data']}), {latents['resolution']} px. "
            "The noise is relative to their standard deviation.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {title} | {value} |" for title, value in rows),
        ]
    )


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
