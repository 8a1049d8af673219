"""Fit, measure and write the tokenizers that ship with pqdiff: src/pqdiff/checkpoints and model_cards.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds

Every tenth photo of --photos in name order is left out of the fit and measured on: shorter side to 256 px by Lanczos,
center crop, 8-bit output. That is the protocol behind every number of record in this project.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds --learned runs/learned

writes what the learned tokenizers begin with instead: photos at their final size, runs/learned/photos/{train,held_out},
and closed forms with gains, runs/learned/gains-PRESET. Then training/configs/pqgan/learned-PRESET.yaml.
"""

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from pqdiff.data.files import atomic_folder
from pqdiff.data.images import iterate_images, resize_and_crop, to_tensor
from pqdiff.hub.cards import write_card
from pqdiff.metrics.protocol import evaluate_reconstruction
from pqdiff.models import PRESETS, AutoencoderPQ
from pqdiff.models.closed_form import fit_closed_form

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "src" / "pqdiff" / "checkpoints"
CARDS = ROOT / "model_cards"
RESULTS = ROOT / "benchmarks" / "results" / "tokenizers.json"
RESOLUTION, HOLD_OUT = 256, 10
# Of the closed forms with gains: hidden channels, bands, placements of the grid on each photo, patches for k-means.
GAINS = {
    "f8-d128-s64-k512": (64, 20, 2, 250_000),
    "f16-d128-s64-k128": (128, 16, 4, 150_000),
    "f16-d256-s128-k128": (128, 20, 4, 150_000),
    "f32-d256-s64-k256": (128, 16, 4, 130_000),
}


def photos(folder: Path, held_out: bool):
    """RGB photos of a folder: every tenth, or all the others."""
    for number, (_, image) in enumerate(iterate_images(folder)):
        if (number % HOLD_OUT == 0) == held_out:
            yield image


def training_photos(args):
    """RGB photos to fit to."""
    return itertools.chain(photos(args.photos, held_out=False), *(map(_second, iterate_images(f)) for f in args.also))


def write_photos(args) -> None:
    """Photos as training crops and measures them, so that no step decodes and scales large files."""
    parts = {"train": (training_photos(args), False), "held_out": (photos(args.photos, held_out=True), True)}
    for name, (images, crop) in parts.items():
        folder = args.learned / "photos" / name
        if folder.exists():
            continue
        with atomic_folder(folder) as temporary:
            for number, image in enumerate(tqdm(images, desc=name)):
                resized = resize_and_crop(image, RESOLUTION, crop=crop)
                resized.save(temporary / f"{number:05d}.png", compress_level=1)


def fit_gains(args, preset: str) -> dict:
    """Fit and save what the learned tokenizer of one preset begins with, and return its metrics."""
    start = time.perf_counter()
    hidden_channels, bands, grids, sample_size = GAINS[preset]
    paths = sorted((args.learned / "photos" / "train").iterdir())
    tensors = (to_tensor(Image.open(path)) for path in tqdm(paths, desc=preset))
    model = fit_closed_form(
        tensors, preset, hidden_channels, seed=args.seed, gain_bands=bands, grids=grids, sample_size=sample_size
    )
    seconds = time.perf_counter() - start
    folder = args.learned / f"gains-{preset}"
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        metrics = evaluate_reconstruction(model, photos(args.photos, held_out=True), RESOLUTION)
        metrics["data"] = f"every {HOLD_OUT}th of {args.photos.name}, left out of the fit"
        metrics["fit_seconds"] = round(seconds, 1)
        (temporary / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    return metrics


def fit(args, preset: str, name: str) -> dict:
    """Fit one preset, write its folder and card, and return its metrics."""
    start = time.perf_counter()
    images = tqdm(training_photos(args), desc=name)
    tensors = (to_tensor(resize_and_crop(image, RESOLUTION, crop=False)) for image in images)
    model = fit_closed_form(tensors, preset, seed=args.seed)
    seconds = time.perf_counter() - start

    folder = CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
    model = AutoencoderPQ.from_pretrained(folder).eval()
    metrics = evaluate_reconstruction(model, photos(args.photos, held_out=True), RESOLUTION)
    metrics["data"] = f"every {HOLD_OUT}th of {args.photos.name}, left out of the fit"
    write_cards(model, name, metrics, args.seed)
    return {**metrics, "fit_seconds": round(seconds, 1)}


def write_cards(model, name: str, metrics: dict, seed: int) -> None:
    """The card beside the weights, and its copy in model_cards."""
    training = (
        f"Fitted by `training/fit_tokenizers.py` (seed {seed}) to ImageNet sample images, one per class and without "
        f"those measured on below, and to the Berkeley Segmentation Data Set, shorter side {RESOLUTION} px: principal "
        f"components of {model.downsample_factor} x {model.downsample_factor} patches, dealt out to the subspaces with "
        "equal products of variances, and k-means in each. Both photo sets are for non-commercial research; no photo is "
        "part of the model."
    )
    folder = CHECKPOINTS / name
    write_card(model, folder, name, training, f'pqdiff.bundled("{name}")', metrics)
    CARDS.mkdir(exist_ok=True)
    shutil.copy(folder / "README.md", CARDS / f"{name}.md")


def _second(pair):
    return pair[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder to fit and measure on")
    parser.add_argument("--also", type=Path, action="append", default=[], help="further folder to fit on; repeatable")
    parser.add_argument("--preset", action="append", choices=PRESETS, help="default: all; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--cards-only", action="store_true", help="write the cards again, from the metrics as they are"
    )
    parser.add_argument("--learned", type=Path, help="write what the learned tokenizers begin with to this folder")
    args = parser.parse_args()
    if not (args.photos or args.cards_only):
        parser.error("--photos is required to fit")
    if args.learned:
        write_photos(args)
        for preset in args.preset or PRESETS:
            metrics = fit_gains(args, preset)
            print(f"{preset}: PSNR {metrics['metrics']['psnr_dataset']:.2f} dB in {metrics['fit_seconds']} s")
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for preset in args.preset or PRESETS:
        name = f"pqgan-{preset}"
        if args.cards_only:
            model = AutoencoderPQ.from_pretrained(CHECKPOINTS / name).eval()
            write_cards(model, name, json.loads((CHECKPOINTS / name / "metrics.json").read_text()), args.seed)
            continue
        results[name] = fit(args, preset, name)
        print(f"{name}: PSNR {results[name]['metrics']['psnr_dataset']:.2f} dB in {results[name]['fit_seconds']} s")
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
