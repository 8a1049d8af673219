"""Which patches, overlap and power of visibility to fit tokenizers with, chosen on photos that are not those of record.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds --learned runs/learned
    python -m benchmarks.visible_fits --photos runs/learned/photos/train --output benchmarks/results/visible_fits.json

Every 16th photo is left out of the fits and measured on. The fits see fewer patches than those that ship and have no
network over the pixels: it is their differences that count. A fit that is in the results of --output is not repeated.
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
POWERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# By preset: patches in the sample, and fits as pairs of a power and an overlap in pixels.
FITS = {
    "f16-d128-s64-k128": (40_000, [*((power, 0) for power in POWERS), (0.75, 16)]),
    "f8-d32-s16-k128": (160_000, [(0.75, 0), (0.0, 8), (0.25, 8), (0.5, 8), (0.75, 8)]),
    "f32-d256-s64-k256": (24_000, [(power, 0) for power in POWERS]),
    "f16-d32-s16-k256": (40_000, [(0.75, 0), (0.0, 16), (0.5, 16), (0.75, 16), (1.0, 16)]),
}
METRICS = ("bits_per_pixel", "psnr_dataset", "ssim", "ssimulacra2", "haarpsi", "mdsi", "fd_efficientnet_lite0")


def photos(folder: Path, held_out: bool):
    for number, image in enumerate(iterate_images(folder)):
        if (number % HOLD_OUT == 0) == held_out:
            yield image


def measure(folder: Path, preset: str, power: float, overlap: int) -> dict[str, float]:
    """Metrics of a fit on the photos that were left out."""
    images = tqdm(photos(folder, held_out=False), desc=f"{preset}, {label(power, overlap)}", unit=" images")
    model = fit_closed_form(
        (to_tensor(resize_to_cover(image, RESOLUTION)) for image in images),
        preset,
        sample_size=FITS[preset][0],
        class_bases=BASES,
        visibility=power,
        overlap=overlap,
    )
    evaluation = Evaluation(
        AutoencoderReconstructor(model), RESOLUTION, perception=perception_metrics(["efficientnet_lite0"])
    )
    for image in photos(folder, held_out=True):
        evaluation.add(image)
    metrics = evaluation.result()["metrics"]
    return {key: metrics[key] for key in METRICS}


def label(power: float, overlap: int) -> str:
    return f"{power:g}, overlap {overlap}" if overlap else f"{power:g}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos, at least 256 px a side")
    parser.add_argument("--preset", action="append", choices=FITS, help="default: all; repeatable")
    parser.add_argument("--output", type=Path, required=True, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    results = json.loads(args.output.read_text())["presets"] if args.output.exists() else {}
    for preset in args.preset or FITS:
        rows = results.setdefault(preset, {})
        for power, overlap in FITS[preset][1]:
            name = label(power, overlap)
            if name in rows:
                continue
            rows[name] = measure(args.photos, preset, power, overlap)
            print(preset, f"power {name}:", {key: round(value, 4) for key, value in rows[name].items()})
            samples = {preset: FITS[preset][0] for preset in results}
            document = {"machine": describe_machine(), "samples": samples, "presets": results}
            args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
