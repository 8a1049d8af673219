"""Make the tiny suite from the beginning: tokenizers, base, three adapted models, their measurements and cards.

    python training/tiny_suite.py

Two cores should need about eight hours, judged by the times of the single steps. After an interruption, run the same
command: finished steps are not repeated, and a trainer that was killed continues. The work is in runs/tiny_suite; the last
step replaces src/pqdiff/checkpoints/tiny-*, model_cards/tiny-*.md and benchmarks/results/tiny_suite.json. `--only` names
the finished pipelines to replace.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from pqdiff import PQStableDiffusionPipeline
from pqdiff.adaptation.variants import load_variant
from pqdiff.hub.local_paths import forget_local_paths
from pqdiff.hub.pipeline_cards import write_pipeline_card

ROOT = Path(__file__).resolve().parent.parent
CHECKPOINTS = ROOT / "src" / "pqdiff" / "checkpoints"
RESULTS = ROOT / "benchmarks" / "results" / "tiny_suite.json"
CONFIGS = ROOT / "training" / "configs" / "tiny_suite"
RESOLUTIONS = {"precise": 64, "quick": 64, "hr": 128}
NAMES = ("base", *RESOLUTIONS)

LIMITS = (
    "It knows only generated scenes of colored shapes and the words of their captions. It shows that the whole path "
    "works; it cannot generate other images. For photos adapt Stable Diffusion 2.1 with training/adapt_sd.py."
)

# How the shipped weights were made, where this script would do something else.
NOTES = {
    "base": "9,600 steps of ldm.yaml, then 5,000 of ldm_more.yaml on 40,000 other scenes, 1,336 of them by one process and "
    "the others by two.",
    "quick": "Two processes on two CPU cores; the config says which noise it was trained on.",
}
BASE_STEPS = 14_600  # of ldm.yaml and ldm_more.yaml; the others' stages are in their variant.yaml


def script(name: str, *arguments) -> list[str]:
    return [sys.executable, str(ROOT / "training" / f"{name}.py"), *map(str, arguments)]


def steps(work: Path, num_scenes: int) -> list[tuple[str, Path, list[str]]]:
    """Name, what it leaves behind, and command of every training step, in order."""
    cache = ["--dataset", "scenes", "--num_samples", num_scenes, "--batch_size", 64, "--num_workers", 0]
    kl_cache = [*cache, "--resolution", 64, "--autoencoder", work / "kl_colors/vae"]
    plan = [
        ("autoencoder of the base", work / "kl/vae", trainer("train_kl", "kl", work / "kl")),
        (
            "the same on more colors",
            work / "kl_colors/vae",
            trainer("train_kl", "kl_colors", work / "kl_colors", "--init", work / "kl/vae"),
        ),
        (
            "its latents",
            work / "cache-kl-first",
            script("cache_latents", *kl_cache, "--seed", 1, "--output", work / "cache-kl-first"),
        ),
        (
            "base",
            work / "base_first/pipeline",
            trainer(
                "train_ldm", "ldm", work / "base_first",
                "--dataset", work / "cache-kl-first", "--autoencoder", work / "kl_colors/vae",
            ),
        ),
        (
            "latents of other scenes",
            work / "cache-kl-64",
            script("cache_latents", *kl_cache, "--seed", 2, "--output", work / "cache-kl-64"),
        ),
        (
            "base, continued",
            work / "base/pipeline",
            trainer(
                "train_ldm", "ldm_more", work / "base",
                "--dataset", work / "cache-kl-64", "--init", work / "base_first/pipeline",
            ),
        ),
        ("tokenizers", work / "tokenizers/hr", script("fit_scene_tokenizers", "--output", work / "tokenizers")),
    ]  # fmt: skip
    for name, resolution in RESOLUTIONS.items():
        tokenizer, folder = work / "tokenizers" / name, work / f"cache-{name}-{resolution}"
        plan += [
            (
                f"tokens of {name}",
                folder,
                script(
                    "cache_latents", *cache, "--seed", 1, "--resolution", resolution, "--autoencoder", tokenizer,
                    "--output", folder,
                ),
            ),
            (
                name,
                work / name / "pipeline",
                trainer(
                    "adapt_sd", name, work / name,
                    "--base", work / "base/pipeline", "--autoencoder", tokenizer, "--dataset", folder,
                ),
            ),
        ]  # fmt: skip
    return plan


def trainer(name: str, config: str, output: Path, *more) -> list[str]:
    return script(name, "--config", CONFIGS / f"{config}.yaml", "--output_dir", output, "--resume", *more)


def finished(result: Path) -> bool:
    """Whether the result of a step is complete: a model, or a cache whose index says so."""
    index = result / "index.json"
    return json.loads(index.read_text()).get("complete", False) if index.is_file() else (
        (result / "model_index.json").is_file() or (result / "config.json").is_file()
    )  # fmt: skip


def ship(work: Path, names: Sequence[str]) -> None:
    """Save the pipelines in half precision, as the package has them."""
    for name in names:
        kind = StableDiffusionPipeline if name == "base" else PQStableDiffusionPipeline
        pipeline = kind.from_pretrained(work / name / "pipeline", torch_dtype=torch.float32)
        folder = CHECKPOINTS / f"tiny-{name}"
        shutil.rmtree(folder, ignore_errors=True)
        pipeline.to(dtype=torch.float16).save_pretrained(folder)
        if name != "base":
            shutil.copy(work / name / "pipeline" / "variant.yaml", folder)
        forget_local_paths(folder)


def write_cards(names: Sequence[str]) -> None:
    """Write cards with the measurements to the package and to model_cards."""
    results = json.loads(RESULTS.read_text())
    for name in names:
        folder = CHECKPOINTS / f"tiny-{name}"
        adapted = name != "base"
        stages = load_variant(folder / "variant.yaml").stages if adapted else ()
        result = results["pipelines"][f"tiny-{name}"]
        metrics = {f"right: {key}": value for key, value in result["right"].items()}
        metrics["seconds per picture"] = result["seconds_per_picture"]
        for key in ("right_without_snapping", "autoencoder_alone"):
            if key in result:
                metrics[f"{key.replace('_', ' ')}: all"] = result[key]["all"]
        write_pipeline_card(
            folder,
            name=f"tiny-{name}",
            base_model="tiny-base" if adapted else None,
            variant=name if adapted else None,
            training={
                "steps": sum(stage.steps for stage in stages) if adapted else BASE_STEPS,
                "batch_size": 64,
                "dataset": "generated scenes (pqdiff.data.scenes.scenes)",
                "note": NOTES.get(name, "Made by the steps of training/tiny_suite.py on two CPU cores."),
            },
            metrics={
                "metrics": metrics,
                "data": "prompts with a pair of color and shape that no training scene shows",
                "num_prompts": results["protocol"]["num_prompts"],
                "protocol": results["protocol"],
            },
            license="apache-2.0",
            load=f'pqdiff.bundled("tiny-{name}")',
            limits=LIMITS,
        )
        shutil.copy(folder / "README.md", ROOT / "model_cards" / f"tiny-{name}.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "tiny_suite", help="default: runs/tiny_suite")
    parser.add_argument("--num_scenes", type=int, default=60_000, help="to train on (default: 60000)")
    parser.add_argument("--num_prompts", type=int, default=500, help="to measure with (default: 500)")
    parser.add_argument(
        "--cards-only", action="store_true", help="write only the cards, from the results that are there"
    )
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, help="ship, measure and describe these as they are in --work"
    )
    args = parser.parse_args()
    names = args.only or NAMES
    if not args.cards_only:
        for name, result, command in [] if args.only else steps(args.work, args.num_scenes):
            if finished(result):
                print(f"{name}: done already", flush=True)
                continue
            print(f"{name}: {' '.join(command)}", flush=True)
            subprocess.run(command, check=True, cwd=ROOT)
        ship(args.work, names)
        measure = [sys.executable, "-m", "benchmarks.tiny_suite", "--output", str(RESULTS)]
        measure += ["--num_prompts", str(args.num_prompts), "--pipelines", *(f"tiny-{name}" for name in names)]
        if names == NAMES:
            measure += ["--grid", str(ROOT / "docs" / "tiny_suite.png")]
        subprocess.run(measure, check=True, cwd=ROOT)
    write_cards(names)


if __name__ == "__main__":
    main()
