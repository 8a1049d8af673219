"""Fit, measure and write the tokenizers that ship with pqdiff: src/pqdiff/checkpoints and model_cards.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds

Every tenth photo of --photos in name order is left out of the fit and measured on: shorter side to 256 px by Lanczos,
center crop, 8-bit output. That is the protocol behind every number of record in this project.

Two kinds: `plain`, one linear transform for all patches, for diffusion models; and `adaptive`, with classes of patches
(src/pqdiff/models/patch_classes.py), for pictures.
"""

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path

from tqdm import tqdm

from pqdiff.data.files import atomic_folder
from pqdiff.data.images import iterate_images, resize_and_crop, to_tensor
from pqdiff.hub.cards import write_card
from pqdiff.metrics.protocol import evaluate_reconstruction
from pqdiff.models import PRESETS, AutoencoderPQ
from pqdiff.models.closed_form import fit_closed_form
from pqdiff.models.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "src" / "pqdiff" / "checkpoints"
CARDS = ROOT / "model_cards"
RESULTS = ROOT / "benchmarks" / "results" / "tokenizers.json"
LATENTS = ROOT / "benchmarks" / "results" / "latent_stats.json"
RESOLUTION, HOLD_OUT = 256, 10
KINDS = {"plain": "", "adaptive": "-adaptive"}  # and the ends of their names
BASES = 16
# Of the adaptive ones: placements of the grid of patches on each photo, patches of the sample.
SAMPLES = {
    "f8-d128-s64-k512": (2, 250_000),
    "f16-d128-s64-k128": (4, 150_000),
    "f16-d256-s128-k128": (4, 80_000),
    "f32-d256-s64-k256": (4, 130_000),
}


def photos(folder: Path, held_out: bool):
    """RGB photos of a folder: every tenth, or all the others."""
    for number, (_, image) in enumerate(iterate_images(folder)):
        if (number % HOLD_OUT == 0) == held_out:
            yield image


def training_photos(args):
    """RGB photos to fit to."""
    return itertools.chain(photos(args.photos, held_out=False), *(map(_second, iterate_images(f)) for f in args.also))


def fit(args, preset: str, name: str) -> dict:
    """Fit one preset, write its folder and card, and return its metrics."""
    start = time.perf_counter()
    images = tqdm(training_photos(args), desc=name)
    tensors = (to_tensor(resize_and_crop(image, RESOLUTION, crop=False)) for image in images)
    options = {}
    if name.endswith(KINDS["adaptive"]):
        options = dict(zip(("grids", "sample_size"), SAMPLES[preset], strict=True), class_bases=BASES)
    model = fit_closed_form(tensors, preset, seed=args.seed, **options)
    seconds = time.perf_counter() - start

    folder = CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        if model.config.class_bases:  # many bases, which lose nothing that can be seen
            path = model.patch_transform
            for part in (path.analysis, path.synthesis, path.patch_classes):
                part.half()
        model.save_pretrained(temporary)
    model = AutoencoderPQ.from_pretrained(folder).eval()
    metrics = evaluate_reconstruction(model, photos(args.photos, held_out=True), RESOLUTION)
    metrics["data"] = f"every {HOLD_OUT}th of {args.photos.name}, left out of the fit"
    write_cards(model, name, metrics, args.seed)
    return {**metrics, "fit_seconds": round(seconds, 1)}


def write_cards(model, name: str, metrics: dict, seed: int) -> None:
    """The card beside the weights, and its copy in model_cards."""
    size = f"{model.downsample_factor} x {model.downsample_factor}"
    recipe = (
        f"principal components of {size} patches, dealt out to the subspaces with equal products of variances, and k-means "
        "in each."
    )
    if model.config.class_bases:
        recipe = (
            f"the first token says which of {model.quantizer.codebook_sizes[0]} classes a {size} patch is (a mixture of "
            f"Gaussians in {model.config.class_bases} orthonormal bases), the others code its coefficients in that basis "
            "relative to that class, dealt out to the subspaces with equal products of variances, and k-means in each. "
            f"The encoder tries the {model.config.class_candidates} likeliest classes. Made for pictures; a diffusion "
            "model should have the latents of the plain tokenizer of the same preset."
        )
    training = (
        f"Fitted by `training/fit_tokenizers.py` (seed {seed}) to ImageNet sample images, one per class and without "
        f"those measured on below, and to the Berkeley Segmentation Data Set, shorter side {RESOLUTION} px: {recipe} "
        "Both photo sets are for non-commercial research; no photo is part of the model."
    )
    folder = CHECKPOINTS / name
    write_card(
        model, folder, name, training, f'pqdiff.bundled("{name}")', metrics, latents=latent_statistics(model, name)
    )
    CARDS.mkdir(exist_ok=True)
    shutil.copy(folder / "README.md", CARDS / f"{name}.md")


def latent_statistics(model, name: str) -> dict | None:
    """What `benchmarks/latent_stats.py` measured on these very weights, if it did: run it, then this with --cards-only."""
    document = json.loads(LATENTS.read_text()) if LATENTS.exists() else {"autoencoders": {}}
    entry = document["autoencoders"].get(name)
    if entry is None or entry["fingerprint"] != fingerprint(model):
        return None
    return {**{key: document[key] for key in ("num_images", "data", "resolution")}, **entry}


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
    parser.add_argument("--only", choices=KINDS, help="one kind; default: both")
    args = parser.parse_args()
    if not (args.photos or args.cards_only):
        parser.error("--photos is required to fit")
    kinds = [args.only] if args.only else KINDS
    for preset, kind in itertools.product(args.preset or PRESETS, kinds):
        name = f"pqgan-{preset}{KINDS[kind]}"
        if args.cards_only:
            model = AutoencoderPQ.from_pretrained(CHECKPOINTS / name).eval()
            write_cards(model, name, json.loads((CHECKPOINTS / name / "metrics.json").read_text()), args.seed)
            continue
        measured = fit(args, preset, name)
        print(f"{name}: PSNR {measured['metrics']['psnr_dataset']:.2f} dB in {measured['fit_seconds']} s")
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another run may have written meanwhile
        results[name] = measured
        order = [f"pqgan-{preset}{end}" for end in KINDS.values() for preset in PRESETS]
        results = {name: results[name] for name in sorted(results, key=order.index)}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
