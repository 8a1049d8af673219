"""Plots of quality against bits per pixel: quality without the rate means nothing."""

from pathlib import Path

from pqdiff.clean_text import escaped
from pqdiff.data.files import atomic_file

QUALITIES = {"psnr_dataset": "PSNR [dB]", "ssim": "SSIM", "ssimulacra2": "SSIMULACRA2"}
_LINES = {"jpeg": ":", "jpeg444": "-.", "webp": "--", "avif": "-"}


def plot_rate_quality(results: dict[str, dict], path: Path, title: str = "") -> None:
    """Draw PSNR, SSIM and SSIMULACRA2 against bits per pixel to a PNG file: models as points, codecs as curves.

    Args:
        results: by name, each with `metrics`; what has no rate, such as an autoencoder without tokens, is a level line.
        path: file to write.
        title: for the whole figure.

    Raises:
        ImportError: if matplotlib is not installed, naming the extra.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state
    except ImportError:
        raise ImportError("a plot needs matplotlib: install pqdiff[eval]") from None
    keys = [key for key in QUALITIES if any(r["metrics"].get(key) is not None for r in results.values())]
    figure = Figure(figsize=(5 * len(keys) + 2, 5), layout="constrained")
    axes = figure.subplots(1, len(keys), squeeze=False)[0]
    for axis, key in zip(axes, keys, strict=True):
        for codec, style in _LINES.items():
            points = sorted(_point(r, key) for name, r in results.items() if _codec_of(name) == codec)
            if points := [point for point in points if None not in point]:
                axis.plot(*zip(*points, strict=True), color="gray", linestyle=style, marker=".", label=codec.upper())
        others = {name: result for name, result in results.items() if _codec_of(name) is None}
        for number, (name, result) in enumerate(others.items()):
            rate, quality = _point(result, key)
            label, color = _plain(name.removeprefix("pqgan-")), f"C{number % 10}"
            if quality is None:
                continue
            if rate is None:
                axis.axhline(quality, color=color, linewidth=1, label=f"{label} (no tokens)")
            else:
                axis.plot(rate, quality, color=color, marker="osv^D*PXph"[number % 10], linestyle="none", label=label)
        axis.set(xlabel="bits per pixel", ylabel=QUALITIES[key])
        axis.grid(alpha=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize=7, loc="outside right upper")
    figure.suptitle(_plain(title))
    with atomic_file(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _plain(text: str) -> str:
    """A name as matplotlib shows it, which would take what stands between dollars for a formula."""
    return escaped(text).replace("$", r"\$")


def _codec_of(name: str) -> str | None:
    codec = name.split(":")[0].split("@")[0]
    return codec if codec in _LINES and codec != name else None


def _point(result: dict, key: str) -> tuple[float | None, float | None]:
    return result["metrics"].get("bits_per_pixel"), result["metrics"].get(key)
