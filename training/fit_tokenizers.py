"""Fit, measure and write the tokenizers that ship with pqdiff, to src/pqdiff/checkpoints and model_cards.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds

Every tenth photo of --photos, in the order of names, is not fitted to but measured on: shorter side to 256 px by Lanczos,
center crop, 8-bit output. All published numbers of this project are measured by this protocol.

There are three kinds: `plain`, with one linear transform for all patches, for diffusion models; `adaptive`, with classes of
patches, for compression; and `perceptual`, with classes of patches that overlap, fitted to errors weighed by how much they
are seen. The adaptive ones that a learned-PRESET.yaml names then get a small network over the decoded pixels (that of F8
gained only 0.001 dB by it and has none), and so do the perceptual ones by learned-PRESET-perceptual.yaml:

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds --learned runs/learned
    accelerate launch training/train_pqgan.py --config training/configs/pqgan/learned-PRESET.yaml
    python training/fit_tokenizers.py --photos PHOTOS/imagenet --learned runs/learned --preset PRESET --only adaptive

The first command writes the photos at their final size to runs/learned/photos/{train,held_out}; the last one ships what was
trained.
"""

import argparse
import itertools
import json
import shutil
import time
from pathlib import Path

from tqdm import tqdm

from pqdiff.data.captions.captioned import iterate_images
from pqdiff.data.files import atomic_folder
from pqdiff.data.images.crops import resize_and_crop, resize_to_cover
from pqdiff.data.images.reading import to_tensor
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.hub.closed_form_card import write_closed_form_card
from pqdiff.hub.local_paths import forget_local_paths
from pqdiff.metrics.evaluation import evaluate_reconstruction
from pqdiff.models import PRESETS, AutoencoderPQ
from pqdiff.models.fingerprint import fingerprint

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "src" / "pqdiff" / "checkpoints"
CARDS = ROOT / "model_cards"
RESULTS = ROOT / "benchmarks" / "results" / "tokenizers.json"
LATENTS = ROOT / "benchmarks" / "results" / "latent_stats.json"
RESOLUTION, HOLD_OUT = 256, 10
KINDS = {"plain": "", "adaptive": "-adaptive", "perceptual": "-perceptual"}  # with the ends of their names
BASES = 16
# Of the perceptual ones: what `fit_closed_form` is given. benchmarks/visible_fits.py has what each choice gives.
PERCEPTUAL = {
    "f8-d32-s16-k128": {"visibility": 0.5, "overlap": 8},
    "f16-d32-s16-k256": {"visibility": 1.0, "overlap": 16},
}
TOKENIZERS = [(preset, kind) for kind in ("plain", "adaptive") for preset in PRESETS]
TOKENIZERS += [(preset, "perceptual") for preset in PERCEPTUAL]
# Of all but the plain ones: tensors that are stored in fp32, the others in half precision.
IN_FULL_PRECISION = ("quantizer.codebooks", "quantizer.class_codewords", "quantizer.frequencies")
# For these: number of grids of patches on each photo, and number of patches in the sample.
SAMPLES = {
    "f8-d128-s64-k512": (2, 250_000),
    "f16-d128-s64-k128": (4, 150_000),
    "f16-d256-s128-k128": (4, 80_000),
    "f32-d256-s64-k256": (4, 130_000),
    "f8-d32-s16-k128": (2, 250_000),
    "f16-d32-s16-k256": (4, 150_000),
}


def photos(folder: Path, held_out: bool):
    """RGB photos of a folder: every tenth, or all the others."""
    for number, image in enumerate(iterate_images(folder)):
        if (number % HOLD_OUT == 0) == held_out:
            yield image


def training_photos(args):
    """RGB photos to fit to."""
    return itertools.chain(photos(args.photos, held_out=False), *map(iterate_images, args.also))


def write_photos(args) -> None:
    """Write photos at the size at which they are used, so that no training step decodes and scales large files."""
    parts = {
        "train": (training_photos(args), resize_to_cover),
        "held_out": (photos(args.photos, held_out=True), resize_and_crop),
    }
    for name, (images, resize) in parts.items():
        folder = args.learned / "photos" / name
        if folder.exists():
            continue
        with atomic_folder(folder) as temporary:
            for number, image in enumerate(tqdm(images, desc=name)):
                resized = resize(image, RESOLUTION)
                resized.save(temporary / f"{number:05d}.png", compress_level=1)


def has_classes(name: str) -> bool:
    return name.endswith((KINDS["adaptive"], KINDS["perceptual"]))


def perceptual_options(name: str) -> dict[str, float]:
    """What a perceptual tokenizer is fitted with, or nothing."""
    perceptual = name.endswith(KINDS["perceptual"])
    return PERCEPTUAL[name.removeprefix("pqgan-").removesuffix(KINDS["perceptual"])] if perceptual else {}


def fit(args, preset: str, name: str) -> dict:
    """Fit one preset, write its folder and card, and return its metrics."""
    start = time.perf_counter()
    images = tqdm(training_photos(args), desc=name)
    tensors = (to_tensor(resize_to_cover(image, RESOLUTION)) for image in images)
    options = dict(perceptual_options(name))
    if has_classes(name):
        options |= dict(zip(("grids", "sample_size"), SAMPLES[preset], strict=True), class_bases=BASES)
    model = fit_closed_form(tensors, preset, seed=args.seed, **options)
    seconds = time.perf_counter() - start

    return {**ship(args, model, name), "fit_seconds": round(seconds, 1)}


def ship(args, model: AutoencoderPQ, name: str) -> dict:
    """Write the folder and the card of a model, and return its metrics, measured as it ships."""
    folder = CHECKPOINTS / name
    shutil.rmtree(folder, ignore_errors=True)
    with atomic_folder(folder) as temporary:
        if has_classes(name):  # many bases; half precision makes no visible difference
            for key, tensor in model.state_dict(keep_vars=True).items():
                if key not in IN_FULL_PRECISION:
                    tensor.data = tensor.data.half()
        model.save_pretrained(temporary)
    forget_local_paths(folder)
    return measure(args, name)


def measure(args, name: str) -> dict:
    """Measure a tokenizer as it ships, write its metrics and card, and return the metrics."""
    model = AutoencoderPQ.from_pretrained(CHECKPOINTS / name).eval()
    metrics = evaluate_reconstruction(model, photos(args.photos, held_out=True), RESOLUTION)
    metrics["data"] = f"every {HOLD_OUT}th of {args.photos.name}, left out of the fit"
    write_cards(model, name, metrics, args.seed)
    return metrics


def write_cards(model, name: str, metrics: dict, seed: int) -> None:
    """The card beside the weights, and its copy in model_cards."""
    size, options = f"{model.downsample_factor} x {model.downsample_factor}", perceptual_options(name)
    recipe = (
        f"principal components of {size} patches, dealt out to the subspaces with equal products of variances, and k-means "
        "in each."
    )
    if has_classes(name):
        recipe = (
            f"the first token says which of {model.quantizer.codebook_sizes[0]} classes a patch of {size} is (a mixture of "
            f"Gaussians in {model.quantizer.bases} orthonormal bases), the others code its coefficients in that basis "
            "relative to that class, dealt out to the subspaces with equal products of variances, and k-means in each. "
            f"The encoder tries the {model.quantizer.candidates} likeliest classes. Made for compression; for a "
            "diffusion model, take a plain tokenizer."
        )
    if model.refiner is not None:
        config = f"training/configs/pqgan/learned-{name.removeprefix('pqgan-').removesuffix(KINDS['adaptive'])}.yaml"
        loss = "squared error and SSIMULACRA2" if options else "squared error"
        recipe += (
            f" A network of {sum(p.numel() for p in model.refiner.parameters()):,} parameters over the decoded pixels, "
            f"trained on the same photos for {loss} (`{config}`), then mends the borders of patches and some blur."
        )
    if options:
        recipe = (
            f"patches overlap by an orthogonal filter of {options['overlap']} pixels across their borders, and their "
            f"errors are weighed by how much SSIMULACRA2 falls by them; {recipe}"
        )
    training = (
        f"Fitted by `training/fit_tokenizers.py` (seed {seed}) to ImageNet sample images, one per class and without "
        f"those measured on below, and to the Berkeley Segmentation Data Set, shorter side {RESOLUTION} px: {recipe} "
        "Both photo sets are for non-commercial research; no photo is part of the model."
    )
    folder = CHECKPOINTS / name
    write_closed_form_card(
        model,
        folder,
        name,
        training,
        f'pqdiff.bundled("{name}")',
        metrics,
        latents=latent_statistics(model, name),
        visibility=options.get("visibility", 0.0),
    )
    CARDS.mkdir(exist_ok=True)
    shutil.copy(folder / "README.md", CARDS / f"{name}.md")


def latent_statistics(model, name: str) -> dict | None:
    """What `benchmarks/latent_stats.py` measured on exactly these weights, or None: run it, then this with --cards-only."""
    document = json.loads(LATENTS.read_text()) if LATENTS.exists() else {"autoencoders": {}}
    entry = document["autoencoders"].get(name)
    if entry is None or entry["fingerprint"] != fingerprint(model):
        return None
    return {**{key: document[key] for key in ("num_images", "data", "resolution")}, **entry}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder to fit and measure on")
    parser.add_argument("--also", type=Path, action="append", default=[], help="further folder to fit on; repeatable")
    parser.add_argument("--preset", action="append", choices=SAMPLES, help="default: all; repeatable")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    parser.add_argument(
        "--cards-only", action="store_true", help="write only the cards, from the metrics that are there"
    )
    parser.add_argument("--measure-only", action="store_true", help="measure what ships again, without a fit")
    parser.add_argument(
        "--learned", type=Path, help="folder of training runs: write their photos, or ship their results"
    )
    parser.add_argument("--only", choices=KINDS, help="one kind; default: all")
    args = parser.parse_args()
    if not (args.photos or args.cards_only):
        parser.error("--photos is required to fit")
    if args.learned and not (args.learned / "photos" / "held_out").exists():
        write_photos(args)
        return
    kinds = [args.only] if args.only else [kind for kind in KINDS if not args.learned or kind != "plain"]
    wanted = [(preset, kind) for preset, kind in TOKENIZERS if kind in kinds and preset in (args.preset or SAMPLES)]
    if not wanted:
        parser.error(f"--preset {' '.join(args.preset)} has no {' or '.join(kinds)} tokenizer")
    for preset, kind in wanted:
        name = f"pqgan-{preset}{KINDS[kind]}"
        if args.cards_only:
            model = AutoencoderPQ.from_pretrained(CHECKPOINTS / name).eval()
            write_cards(model, name, json.loads((CHECKPOINTS / name / "metrics.json").read_text()), args.seed)
            continue
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        if args.measure_only:
            measured = {**measure(args, name), "fit_seconds": results[name]["fit_seconds"]}
        elif args.learned:
            trained = args.learned / name.removeprefix("pqgan-").removesuffix(KINDS["adaptive"]) / "autoencoder"
            if not trained.exists():
                print(f"{name}: {trained} is missing, so this tokenizer stays as it is")
                continue
            model = AutoencoderPQ.from_pretrained(trained).eval()
            measured = {**ship(args, model, name), "fit_seconds": results[name]["fit_seconds"]}
        else:
            measured = fit(args, preset, name)
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}  # another run may have written
        print(f"{name}: PSNR {measured['metrics']['psnr_dataset']:.2f} dB")
        results[name] = measured
        order = [f"pqgan-{preset}{KINDS[kind]}" for preset, kind in TOKENIZERS]
        results = {name: results[name] for name in order if name in results}
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
