"""The networks over pixels of the adaptive F32 and F16 tokenizers, trained further with other losses than squared errors.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds --learned runs/learned
    python -m benchmarks.perceptual_training --photos runs/learned/photos \\
        --output benchmarks/results/perceptual_training.json

Each run is a configuration training/configs/pqgan/perceptual-PRESET.yaml with other weights, 400 steps of two photos (ten
minutes on a core). Codes and rate stay the same. All are measured on the 72 photos of record. Distances of features are
those of the network that the feature loss has, too: they say less about runs that were trained with it.
"""

import argparse
import json
from pathlib import Path

from benchmarks.machine import describe_machine
from pqdiff.checkpoints import bundled
from pqdiff.data.captions.captioned import open_captioned
from pqdiff.metrics.evaluation import Evaluation, EvaluationRun
from pqdiff.metrics.perception import perception_metrics
from pqdiff.metrics.reconstructors import build_reconstructor
from training import train_pqgan

CONFIGS = Path(__file__).resolve().parent.parent / "training" / "configs" / "pqgan"
STEPS = 400
PRESETS = {"f32": "f32-d256-s64-k256", "f16": "f16-d128-s64-k128"}
SSIMULACRA2_WEIGHTS = {"f32": "3", "f16": "10"}  # squared errors weigh 70 and 500
STRONG = {
    "f32": ["--ssimulacra2_weight", "30", "--perceptual_weight", "2", "--learning_rate", "3e-3"],
    "f16": ["--ssimulacra2_weight", "100", "--perceptual_weight", "5", "--learning_rate", "3e-3"],
}
LOSSES = ("ss2", "feature", "both", "strong", "disc")
TITLES = {
    "ss2": "SSIMULACRA2",
    "feature": "features of EfficientNet-Lite0",
    "both": "features and SSIMULACRA2",
    "strong": "both, ten times the weights",
    "disc": "features and discriminator",
}


def flags(preset: str, loss: str) -> list[str]:
    """What a run changes of its configuration."""
    own = {
        "ss2": ["--perceptual_weight", "0", "--ssimulacra2_weight", SSIMULACRA2_WEIGHTS[preset]],
        "feature": [],
        "both": ["--ssimulacra2_weight", SSIMULACRA2_WEIGHTS[preset]],
        "strong": STRONG[preset],
        "disc": ["--adversarial_weight", "0.1"],
    }
    return own[loss]


def train(preset: str, loss: str, photos: Path, folder: Path) -> Path:
    """Folder of the autoencoder of a run, which goes on if it was interrupted and is not repeated if it has ended."""
    if not (folder / "autoencoder").is_dir():
        config = CONFIGS / f"perceptual-{PRESETS[preset]}.yaml"
        options = ["--dataset", photos / "train", "--validation_dataset", photos / "held_out", "--validation_steps", 0]
        options += ["--steps", STEPS, "--output_dir", folder, *flags(preset, loss), *["--resume"] * folder.exists()]
        train_pqgan.main(["--config", str(config), *map(str, options)])
    return folder / "autoencoder"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos", type=Path, required=True, help="folder that fit_tokenizers.py --learned has written"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/perceptual"), help="default: runs/perceptual")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    models = {}
    for preset, name in PRESETS.items():
        models[f"{preset}, as it ships"] = bundled(f"pqgan-{name}-adaptive")
        for loss in LOSSES:
            models[f"{preset}, {TITLES[loss]}"] = train(preset, loss, args.photos, args.work / f"{preset}-{loss}")
    perception = perception_metrics(["efficientnet_lite0"])
    run = EvaluationRun(
        {
            name: Evaluation(build_reconstructor(str(folder)), perception=perception.again())
            for name, folder in models.items()
        }
    )
    run.run(open_captioned(str(args.photos / "held_out"), captions=False))
    results = {name: {key: result[key] for key in ("num_images", "metrics")} for name, result in run.results().items()}
    for name, result in results.items():
        numbers = (result["metrics"][key] for key in ("psnr_dataset", "ssimulacra2", "fd_efficientnet_lite0"))
        print(f"{name:40} PSNR {next(numbers):.2f} dB, SSIMULACRA2 {next(numbers):.2f}, FD {next(numbers):.1f}")
    if args.output:
        document = {"machine": describe_machine(), "steps": STEPS, "models": results}
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
