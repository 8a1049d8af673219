"""Latent channels d, subspaces S and codewords K of product quantization, swept: the paper's figures 3 and 6 in small.

    python -m benchmarks.pq_trends --photos PHOTOS/imagenet --also PHOTOS/bsds --work runs/pq_trends \
        --output benchmarks/results/pq_trends.json --plot docs/pq_trends.png

F = 8, one linear map of patches on each side of the quantizer, 64 px crops, as `benchmarks.quantizers --size linear`; every
tenth photo is measured on by the protocol of record. Every point is fitted in closed form (principal components, k-means),
and some are trained by gradients from random codewords, as the paper trains all of its models. A few trained ones move
unused codewords to data every 50 steps: they tell the effect of the dimension from that of codewords that die. The paper's
ranges are d from 4 to 256, S in {1, d/8, d/4, d/2, d} and K from 128 to 16,384; a patch has 192 numbers, so d ends there.

d, S and K all change the rate, except d at a fixed S: the rate stands beside every point, and the last panel holds it.
Points in --work are not repeated, and an interrupted training goes on.
"""

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.quantizers import RESOLUTION, SIZES, write_crops
from benchmarks.training_runs import trained_autoencoder
from pqdiff import AutoencoderPQ
from pqdiff.data.images.crops import resize_and_crop, resize_to_cover
from pqdiff.data.images.reading import to_tensor
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.metrics.evaluation import evaluate_reconstruction
from training.fit_tokenizers import photos, training_photos

CLOSED, TRAINED, RESTARTED = "closed form", "trained", "trained, restarts"
EVERY, SAMPLE = 4, 100_000  # closed forms: photos to read, and patches for k-means
METRICS = {
    "bits_per_pixel": "bits_per_pixel",
    "psnr_dataset": "psnr_dataset",
    "psnr_image_mean": "psnr_image_mean",
    "ssim": "ssim",
    "usage": "codebook_utilization",
    "h_n": "codebook_h_n",
    "entropy_bits_per_pixel": "entropy_bits_per_pixel",
}


class Point(NamedTuple):
    fit: str
    d: int
    S: int
    K: int

    def __str__(self) -> str:
        return f"{self.fit.replace(', ', '-').replace(' ', '-')}-d{self.d}-s{self.S}-k{self.K}"


CHANNELS, MIDDLE = (4, 8, 16, 32, 64, 128, 192), 32
SIZES_OF_CODEBOOKS = (128, 512, 1024, 8192, 16384)
SHARES = {
    "S = 1 (VQ)": lambda d: 1,
    "S = d/8": lambda d: d // 8,
    "S = d/4": lambda d: d // 4,
    "S = d/2": lambda d: d // 2,
    "S = d (scalar)": lambda d: d,
}
EQUAL_BITS = {  # per position: pairs of S and K
    12: ((1, 4096), (2, 64), (4, 8)),
    32: ((4, 256), (8, 16), (16, 4)),
    64: ((8, 256), (16, 16), (32, 4)),
}
# In this order, each once. S = 4 with K = 512 is 36 bits at every d.
POINTS = tuple(
    dict.fromkeys(
        [Point(TRAINED, d, S, 512) for d in (4, 16, 32, 64, 128) for S in (1, d // 2)]
        + [Point(RESTARTED, d, 1, 512) for d in (4, 32, 128)]
        + [Point(CLOSED, d, S, 512) for d in CHANNELS for S in (*(share(d) for share in SHARES.values()), 4) if S]
        + [Point(TRAINED, d, 4, 512) for d in (4, 32, 128)]
        + [Point(TRAINED, MIDDLE, S, 512) for S in (8, 32)]
        + [Point(CLOSED, MIDDLE, S, K) for pairs in EQUAL_BITS.values() for S, K in pairs]
        + [Point(CLOSED, MIDDLE, S, K) for K in SIZES_OF_CODEBOOKS for S in (1, 8, 16)]
        + [Point(TRAINED, MIDDLE, S, K) for K in (128, 1024, 8192) for S in (1, 16)]
    )
)


def fitted(point: Point, folder: Path, images: list[torch.Tensor], crops: Path, steps: int) -> AutoencoderPQ:
    """The autoencoder of a point, in closed form for images or trained on crops."""
    size = SIZES["linear"]
    if point.fit == CLOSED:
        preset = f"f{size['transform_config']['patch_size']}-d{point.d}-s{point.S}-k{point.K}"
        return fit_closed_form(images, preset, hidden_channels=0, sample_size=SAMPLE)
    return trained_autoencoder(
        folder,
        model={
            "transform_type": size["transform_type"],
            "transform_config": size["transform_config"],
            "quantizer_type": "product",
            "quantizer_config": {"num_subspaces": point.S, "codebook_size": point.K},
            "latent_channels": point.d,
            "sample_size": size["resolution"],
        },
        **{key: size[key] for key in ("resolution", "batch_size", "learning_rate")},
        steps=steps,
        restart_dead_codewords=50 if point.fit == RESTARTED else 0,
        dataset=str(crops),
        random_flip=True,
        log_steps=100,
        fit_images=500,
    )


def measured(point: Point, work: Path, data: tuple[list[torch.Tensor], Path], held_out: list, steps: int) -> dict:
    """Fit and measure a point, unless that is done. One row of the results."""
    folder = work / str(point)
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    metrics = evaluate_reconstruction(fitted(point, folder, *data, steps), held_out, RESOLUTION)["metrics"]
    row = {**point._asdict(), **{key: round(metrics[name], 5) for key, name in METRICS.items()}}
    folder.mkdir(parents=True, exist_ok=True)
    done.write_text(json.dumps(row) + "\n")
    return row


def select(rows: list[dict], fit: str, share: Callable[[int], int] | None = None, **wanted) -> list[dict]:
    """Rows of one fit with these numbers; `share` gives S by d."""
    found = (row for row in rows if row["fit"] == fit and all(row[key] == value for key, value in wanted.items()))
    return [row for row in found if share is None or row["S"] == share(row["d"])]


def plot(document: dict, path: Path) -> None:
    """PSNR against d, S and K, each point with its bits per pixel; usage against d; PSNR against S at equal bits."""
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state

    rows = [{**row, "S / d": row["S"] / row["d"]} for row in document["rows"]]
    figure = Figure(figsize=(16, 10), layout="constrained")
    by_d, trained_by_d, usage, by_share, by_k, equal = figure.subplots(2, 3).flat

    def line(axis, x: str, chosen: list[dict], label: str, style: str, color: str, y="psnr_dataset", shift=(0, 5)):
        """Rates stand at the points, or in the legend if there is only one."""
        chosen = sorted(chosen, key=lambda row: row[x])
        rates = [f"{row['bits_per_pixel']:.3g}" for row in chosen]
        if len(set(rates)) == 1:
            label, rates = f"{label}: {rates[0]} bits per pixel", []
        axis.plot(
            [row[x] for row in chosen], [row[y] for row in chosen], style, label=label, color=color, markersize=4
        )
        for row, rate in zip(chosen, rates, strict=False):
            place = {"xytext": shift, "textcoords": "offset points", "ha": "center", "fontsize": 7, "color": color}
            axis.annotate(rate, (row[x], row[y]), **place)

    below, left, right = (0, -11), (-9, 4), (11, -8)
    for number, (label, share) in enumerate(SHARES.items()):
        shift = (below, right, right, right, left)[number]
        chosen = [row for row in select(rows, CLOSED, share, K=512) if row["S"] > 1 or not number]
        line(by_d, "d", chosen, label, "-o", f"C{number}", shift=shift)
    line(by_d, "d", select(rows, CLOSED, lambda d: 4, K=512), "S = 4", "--^", "C5")
    one, half = SHARES["S = 1 (VQ)"], SHARES["S = d/2"]
    for label, fit, share, style, color, shift in (
        ("S = 1, closed form", CLOSED, one, ":o", "C0", below),
        ("S = 1, trained", TRAINED, one, "-o", "C0", below),
        ("S = 1, trained, unused move", RESTARTED, one, "--s", "C9", below),
        ("S = 4, trained", TRAINED, lambda d: 4, "-^", "C5", below),
        ("S = d/2, closed form", CLOSED, half, ":o", "C3", left),
        ("S = d/2, trained", TRAINED, half, "-o", "C3", right),
    ):
        line(trained_by_d, "d", select(rows, fit, share, K=512), label, style, color, shift=shift)
        line(usage, "d", select(rows, fit, share, K=512), label, style, color, "usage", shift)
    for number, d in enumerate(CHANNELS):
        for fit, style, shift in ((CLOSED, "-o", left), (TRAINED, "--s", right)):
            chosen = [row for row in select(rows, fit, d=d, K=512) if row["S / d"] >= 1 / 8 and row["S"] > 1]
            if len(chosen) > 2:
                name = f"d = {d}" + (", trained" if fit == TRAINED else "")
                line(by_share, "S / d", chosen, name, style, f"C{number}", shift=shift)
    for S, color in ((1, "C0"), (8, "C2"), (16, "C3")):
        for fit, style, shift in ((CLOSED, ":o", left), (TRAINED, "-o", right)):
            chosen = [row for row in select(rows, fit, d=MIDDLE, S=S) if row["K"] in SIZES_OF_CODEBOOKS]
            if len(chosen) > 1:
                line(by_k, "K", chosen, f"S = {S}, {fit}", style, color, shift=shift)
    for number, (bits, pairs) in enumerate(EQUAL_BITS.items()):
        chosen = [row for S, K in pairs for row in select(rows, CLOSED, d=MIDDLE, S=S, K=K)]
        line(equal, "S", chosen, f"{bits} per position", "-o", f"C{number}")
        for row in chosen:
            equal.annotate(
                f"K = {row['K']}", (row["S"], row["psnr_dataset"]), (5, 5), textcoords="offset points", fontsize=8
            )

    for axis, title, label, ticks in (
        (by_d, "d, closed form, K = 512", "d", CHANNELS),
        (trained_by_d, "d, trained, K = 512", "d", CHANNELS),
        (usage, "codewords used, K = 512 (legend of the panel to the left)", "d", CHANNELS),
        (by_share, "S, K = 512, closed form where not said", "S / d", (1 / 8, 1 / 4, 1 / 2, 1)),
        (by_k, f"K, d = {MIDDLE}", "K", SIZES_OF_CODEBOOKS),
        (equal, f"S at equal bits, closed form, d = {MIDDLE}", "S", (1, 2, 4, 8, 16, 32)),
    ):
        axis.set(title=title, xlabel=label, ylabel="fraction" if axis is usage else "PSNR [dB]", xscale="log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
        axis.margins(0.1)
        if axis is not usage:
            axis.legend(fontsize=8)
    figure.suptitle("Numbers at points are bits per pixel")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder; every tenth photo is measured on")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="further folder to train on; repeatable"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/pq_trends"), help="default: runs/pq_trends")
    parser.add_argument("--steps", type=int, default=600, help="of the trained ones; default: 600")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    fit_to = [
        to_tensor(resize_to_cover(image, RESOLUTION))
        for image in itertools.islice(training_photos(args), 0, None, EVERY)
    ]
    data = fit_to, write_crops(args, SIZES["linear"]["resolution"])
    held_out = [resize_and_crop(image, RESOLUTION) for image in photos(args.photos, held_out=True)]
    rows = [measured(point, args.work, data, held_out, args.steps) for point in tqdm(POINTS, desc="points")]
    task = {
        **SIZES["linear"],
        "steps": args.steps,
        "closed_form_photos": len(fit_to),
        "closed_form_patches": SAMPLE,
        "resolution_measured": RESOLUTION,
    }
    task |= {"measured_on": len(held_out), "trained_on": [folder.name for folder in (args.photos, *args.also)]}
    document = {"machine": describe_machine(), "task": task, "rows": rows}
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.plot:
        plot(document, args.plot)


if __name__ == "__main__":
    main()
