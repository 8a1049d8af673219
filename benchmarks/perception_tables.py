"""The tables of docs/perception.md, from committed results. `benchmarks/render_readme.py` writes them."""

import json
from pathlib import Path

# Metrics by title, with their digits.
_COLUMNS = {
    "PSNR dB": ("psnr_dataset", 2),
    "SSIMULACRA2": ("ssimulacra2", 2),
    "FD lite0": ("fd_efficientnet_lite0", 1),
    "HaarPSI": ("haarpsi", 4),
    "MDSI": ("mdsi", 4),
    "MS-SSIM": ("ms_ssim", 4),
    "VIF": ("vif", 4),
}


def perception_tables(results: Path) -> dict[str, str]:
    """Tables by their marks."""
    return {
        "visible": visible_table(results),
        "shipped": shipped_table(results),
        "searched": searched_table(results),
        "bits": bits_table(results),
        "perceptual": perceptual_table(results),
    }


def metrics_table(title: str, rows: dict[str, dict[str, float]], columns: list[str]) -> str:
    """One row per name, one column per metric."""
    lines = [f"| {title} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name, metrics in rows.items():
        cells = (f"{metrics[key]:.{digits}f}" for key, digits in map(_COLUMNS.get, columns))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def visible_table(results: Path) -> str:
    """Fits for errors weighed by powers of their visibility, on photos that were left out."""
    presets = json.loads((results / "visible_fits.json").read_text())["presets"]
    rows = {
        f"`{preset}`, {fit}": metrics
        for preset, rows in sorted(presets.items(), key=lambda item: -next(iter(item[1].values()))["bits_per_pixel"])
        for fit, metrics in rows.items()
    }
    return metrics_table("patches, power", rows, ["PSNR dB", "SSIMULACRA2", "FD lite0", "HaarPSI", "MDSI"])


def shipped_table(results: Path) -> str:
    """The adaptive and the perceptual tokenizers beside the codecs at their rates, on the photos of record."""
    every = json.loads((results / "evaluation.json").read_text())
    perceptual = [name for name in every if name.endswith("-perceptual")]
    perceptual.sort(key=lambda name: -every[name]["metrics"]["bits_per_pixel"])
    rows = {}
    for name in perceptual:
        rate = every[name]["metrics"]["bits_per_pixel"]
        adaptive = [
            other
            for other in every
            if other.endswith("-adaptive") and every[other]["metrics"]["bits_per_pixel"] == rate
        ]
        codecs = [other for other in every if other.endswith(f"@{rate:g}bpp")]
        for each in (*adaptive, name, *codecs):
            rows[f"`{each}`"] = every[each]["metrics"]
    return metrics_table("at the same rate", rows, list(_COLUMNS))


def searched_table(results: Path) -> str:
    """The perceptual tokenizers with the nearest tokens and with those that were searched for."""
    document = json.loads((results / "token_search.json").read_text())
    rows = {}
    for name, ways in sorted(document["models"].items()):
        rows[f"`{name}`"] = ways["encode"]
        rows[f"`{name}`, {document['steps']} steps"] = ways["search"]
    return metrics_table("tokens of", rows, list(_COLUMNS))


def bits_table(results: Path) -> str:
    """PSNR and unevenness of the error, by the size of the squares whose patches share their bits."""
    rows = [
        "| bits per pixel | bits shared in squares of | PSNR dB | median error | 99th percentile | worst tenth's share |",
        "|---|---|---|---|---|---|",
    ]
    for row in json.loads((results / "bit_sharing.json").read_text())["rows"]:
        square = "none do (as it is)" if row["square"] == 1 else f"{row['pixels']} px"
        rows.append(
            f"| {row['bits_per_pixel']} | {square} | {row['psnr']:.2f} | {row['median_error']:.0f} | "
            f"{row['error_of_99_percent']:.0f} | {row['share_of_worst_tenth']:.0%} |"
        )
    return "\n".join(rows)


def perceptual_table(results: Path) -> str:
    """What the networks over pixels give that were trained further with other losses."""
    models = json.loads((results / "perceptual_training.json").read_text())["models"]
    rows = {name: result["metrics"] for name, result in models.items()}
    return metrics_table("tokenizer, loss", rows, list(_COLUMNS))
