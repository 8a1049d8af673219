"""Tables 1, 2 and 5 of the paper with our rows beside them, and plots of quality against bits per pixel.

    python -m benchmarks.tables                 # docs/tables.md and docs/rate_quality.png from the committed results
    python -m benchmarks.tables --commands      # what fills each row on a machine with the weights and the data

Our rows come from files that `training/evaluate.py` wrote: those of ImageNet photos that are in the repository's results,
and any others under --results (`imagenet.json`, `ffhq.json`, `lsun.json`). The paper's numbers stand in columns of their
own, because they are of other images and another protocol. Every row has its bits per pixel.
"""

import argparse
import json
from pathlib import Path

from benchmarks.paper_tables import ANCHORS, TABLE_1, TABLE_2, TABLE_5
from benchmarks.render_readme import RESULTS, ROOT
from pqdiff.checkpoints import BUNDLED
from pqdiff.metrics.rate_plot import plot_rate_quality

OURS = {
    "bits_per_pixel": ("bits per pixel", "{:.3g}"),
    "psnr_dataset": ("PSNR dB, data set", "{:.2f}"),
    "psnr_image_mean": ("PSNR dB, mean of images", "{:.2f}"),
    "ssim": ("SSIM", "{:.4f}"),
    "ssimulacra2": ("SSIMULACRA2", "{:.1f}"),
    "haarpsi": ("HaarPSI", "{:.4f}"),
    "rfid": ("rFID", "{:.3f}"),
    "cmmd": ("CMMD", "{:.3f}"),
    "lpips_alex": ("LPIPS", "{:.4f}"),
    "fd_efficientnet_lite0": ("FD EfficientNet-Lite0", "{:.2f}"),
    "class_agreement_efficientnet_lite0": ("class kept", "{:.1%}"),
}
PAPER = ("bits per pixel", "PSNR dB", "rFID", "CMMD", "LPIPS")
DATA = {"imagenet": "ImageNet validation", "ffhq": "FFHQ", "lsun": "LSUN"}


def cell(value: float | None, form: str = "{:g}") -> str:
    return "-" if value is None else form.format(value)


def table(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def our_table(results: dict[str, dict]) -> str:
    """One row per model or codec, by falling rate; columns that nobody has are left out."""
    keys = [key for key in OURS if any(r["metrics"].get(key) is not None for r in results.values())]
    ordered = sorted(results.items(), key=lambda item: -(item[1]["metrics"].get("bits_per_pixel") or 0))
    rows = [[f"`{name}`", *(cell(r["metrics"].get(key), OURS[key][1]) for key in keys)] for name, r in ordered]
    return table(["ours", *(OURS[key][0] for key in keys)], rows)


def paper_table(rows) -> str:
    forms = ("{:.3g}", "{:.1f}", "{:g}", "{:g}", "{:g}")
    cells = [[name, *(cell(v, f) for v, f in zip(values, forms, strict=True))] for name, *values in rows]
    return table(["the paper's", *PAPER], cells)


def described(results: dict[str, dict]) -> str:
    first = next(iter(results.values()))
    protocol = first["protocol"]
    return (
        f"{first['num_images']} images of {first['data']}, {protocol['resolution']} px, {protocol['resize']}, output "
        f"{protocol['output']}."
    )


def document(folder: Path) -> str:
    """All tables as Markdown."""
    own = json.loads((RESULTS / "evaluation.json").read_text())
    parts = [
        "# Tables of the paper, and ours\n\nWritten by `python -m benchmarks.tables`. Numbers of different images or "
        "protocols do not compare: ours and the paper's stand apart. [metrics.md](metrics.md) says what each number means.",
        "## Reconstruction: what ships, and codecs on the same photos",
        f"{described(own)} The codecs are at the rates of the tokenizers: each file has at most so many bits per pixel, "
        "its header included, or is the smallest that the codec writes.",
        our_table(own),
        "![Quality against bits per pixel](rate_quality.png)",
        codec_summary(own),
    ]
    parts.append("## Table 1: ImageNet validation, 256 px")
    parts += [*further(folder, "imagenet"), paper_table(TABLE_1)]
    for key in ("ffhq", "lsun"):
        parts.append(f"## Table 2: {DATA[key]}, 256 px")
        parts += [*further(folder, key), paper_table(TABLE_2[DATA[key]])]
    parts.append("## Table 5: latent diffusion from nothing, ImageNet, 256 px")
    rows = [[name, cell(fid, "{:.2f}"), cell(rfid)] for name, fid, rfid in TABLE_5]
    parts.append(table(["the paper's", "FID of 5,000 images", "rFID of the autoencoder"], rows))
    parts.append("## Later tokenizers, by their own protocols")
    rows = [[name, cell(b), cell(p, "{:.2f}"), cell(r), source] for name, b, p, r, source in ANCHORS]
    parts.append(table(["name", "bits per pixel", "PSNR dB", "rFID", "source"], rows))
    return "\n\n".join(parts) + "\n"


def further(folder: Path, key: str) -> list[str]:
    """Our table of a data set that is not in the repository, if somebody has measured it."""
    path = folder / f"{key}.json"
    if not path.exists():
        return ["Ours: not measured, because the data is not here. `python -m benchmarks.tables --commands` says how."]
    results = json.loads(path.read_text())
    return [described(results), our_table(results)]


def codec_summary(results: dict[str, dict]) -> str:
    """For each tokenizer, which codecs at its rate are better, by PSNR and by SSIMULACRA2."""
    lines = ["Where a codec is better at the rate of a tokenizer:", ""]
    for name in (name for name in results if name in BUNDLED):
        m = results[name]["metrics"]
        rate = f"@{m['bits_per_pixel']:g}bpp"
        for key, (title, form) in OURS.items():
            if key not in ("psnr_dataset", "ssimulacra2") or m.get(key) is None:
                continue
            rivals = {other: r["metrics"][key] for other, r in results.items() if other.endswith(rate)}
            better = [f"{other} {form.format(value)}" for other, value in rivals.items() if value > m[key]]
            lines.append(f"* `{name}` {title} {form.format(m[key])}: {', '.join(better) or 'none'}")
    return "\n".join(lines)


def commands() -> str:
    """What fills each row on a machine with the weights and the data."""
    rates = sorted({64 * 9 / 64, 128 * 7 / 256, 64 * 7 / 256, 64 * 8 / 1024}, reverse=True)
    codecs = " ".join(f"{codec}@{rate:g}bpp" for rate in rates for codec in ("jpeg444", "webp", "avif"))
    shipped = " ".join(BUNDLED)
    networks = "--networks inception clip lpips_alex efficientnet_lite0 --download"
    lines = [
        "# The rows of the photos in this repository (every tenth photo of PHOTOS/imagenet):",
        f"pqdiff evaluate PHOTOS/imagenet --every 10 --network efficientnet_lite0 -o benchmarks/results/evaluation.json "
        f"{' '.join(f'-m {name}' for name in [*BUNDLED, *codecs.split()])}",
    ]
    for key, title in DATA.items():
        lines += [
            f"# {title}, by the paper's protocol; further models are folders or Hub ids of autoencoders:",
            f"accelerate launch training/evaluate.py --dataset {key.upper()} --protocol paper {networks} "
            f"--models {shipped} stabilityai/sd-vae-ft-mse --output results/{key}.json",
        ]
    lines += ["# Then:", "python -m benchmarks.tables --results results"]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of further metrics files")
    parser.add_argument("--commands", action="store_true", help="print how each row is measured, and end")
    parser.add_argument(
        "--output", type=Path, default=ROOT / "docs", help="folder for tables and plot (default: docs)"
    )
    args = parser.parse_args(arguments)
    if args.commands:
        print(commands())
        return
    (args.output / "tables.md").write_text(document(args.results))
    results = json.loads((RESULTS / "evaluation.json").read_text())
    plot_rate_quality(results, args.output / "rate_quality.png", described(results))


if __name__ == "__main__":
    main()
