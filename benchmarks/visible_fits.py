"""Which power of visibility to fit adaptive tokenizers with, chosen on photos that are not those of record.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds --learned runs/learned
    python -m benchmarks.visible_fits --photos runs/learned/photos/train --output benchmarks/results/visible_fits.json

Every 16th photo is left out of the fits and measured on. The fits see fewer patches than those that ship (40,000 of 16 px,
24,000 of 32 px) and have no network over the pixels: it is their differences that count. A fit that is in the results of
--output is not repeated.
"""

import argparse
import json
from pathlib import Path

from tqdm import tqdm

from benchmarks.machine import describe_machine
from pqdiff.data.captions.captioned import iterate_images
from pqdiff.data.images.crops import resize_to_cover
from pqdiff.data.images.reading import to_tensor
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.metrics.evaluation import Evaluation
from pqdiff.metrics.perception import perception_metrics
from pqdiff.metrics.reconstructors import AutoencoderReconstructor
from training.fit_tokenizers import BASES, RESOLUTION

HOLD_OUT = 16
SAMPLES = {"f16-d128-s64-k128": 40_000, "f32-d256-s64-k256": 24_000}
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
METRICS = ("bits_per_pixel", "psnr_dataset", "ssim", "ssimulacra2", "haarpsi", "mdsi", "fd_efficientnet_lite0")


def photos(folder: Path, held_out: bool):
    for number, image in enumerate(iterate_images(folder)):
        if (number % HOLD_OUT == 0) == held_out:
            yield image


def measure(folder: Path, preset: str, power: float) -> dict[str, float]:
    """Metrics of a fit on the photos that were left out."""
    images = tqdm(photos(folder, held_out=False), desc=f"{preset}, power {power:g}", unit=" images")
    model = fit_closed_form(
        (to_tensor(resize_to_cover(image, RESOLUTION)) for image in images),
        preset,
        sample_size=SAMPLES[preset],
        class_bases=BASES,
        visibility=power,
    )
    evaluation = Evaluation(
        AutoencoderReconstructor(model), RESOLUTION, perception=perception_metrics(["efficientnet_lite0"])
    )
    for image in photos(folder, held_out=True):
        evaluation.add(image)
    metrics = evaluation.result()["metrics"]
    return {key: metrics[key] for key in METRICS}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, at least 256 px a side")
    parser.add_argument("--preset", action="append", choices=SAMPLES, help="default: both; repeatable")
    parser.add_argument("--power", action="append", type=float, help=f"default: {POWERS}; repeatable")
    parser.add_argument("--output", type=Path, required=True, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    results = json.loads(args.output.read_text())["presets"] if args.output.exists() else {}
    for preset in args.preset or SAMPLES:
        for power in args.power or POWERS:
            rows = results.setdefault(preset, {})
            if f"{power:g}" in rows:
                continue
            rows[f"{power:g}"] = measure(args.photos, preset, power)
            results[preset] = {key: rows[key] for key in sorted(rows, key=float)}
            print(preset, f"power {power:g}:", {key: round(value, 4) for key, value in rows[f"{power:g}"].items()})
            document = {"machine": describe_machine(), "samples": SAMPLES, "presets": results}
            args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
