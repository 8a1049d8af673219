"""What it gives to choose tokens by the decoded image: the perceptual tokenizers with and without token search.

    python -m benchmarks.token_search --photos PHOTOS/imagenet --output benchmarks/results/token_search.json

On the 72 photos of record. The search lowers SSIMULACRA2's loss and the squared error; the other metrics say whether the
images are better, too. A model that is in the results of --output is not measured again. Ten seconds a photo on one core.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from pqdiff.checkpoints import BUNDLED
from pqdiff.data.images.reading import normalize
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from pqdiff.metrics.evaluation import Evaluation
from pqdiff.metrics.perception import perception_metrics
from pqdiff.metrics.reconstructors import AutoencoderReconstructor
from pqdiff.models.loading import load_tokenizer
from pqdiff.models.token_search import search_tokens
from training.fit_tokenizers import RESOLUTION, photos

MODELS = [name for name in BUNDLED if name.endswith("-perceptual")]


class SearchingReconstructor(AutoencoderReconstructor):
    """A tokenizer whose tokens are searched for."""

    def __init__(self, model, name: str, steps: int):
        super().__init__(model.requires_grad_(False), name)
        self.steps, self.loss = steps, SSIMULACRA2Loss()

    def _one(self, pixels: torch.Tensor):
        tokens = search_tokens(self.model, normalize(pixels), self.loss, self.steps)
        return self.model.decode_from_indices(tokens).sample, tokens, None


def measure(name: str, images, steps: int) -> dict:
    """Metrics without and with the search, and its seconds per photo."""
    model = load_tokenizer(name)
    reconstructors = {
        "encode": AutoencoderReconstructor(model, name),
        "search": SearchingReconstructor(model, name, steps),
    }
    evaluations = {
        way: Evaluation(each, RESOLUTION, perception=perception_metrics(["efficientnet_lite0"]))
        for way, each in reconstructors.items()
    }
    seconds = dict.fromkeys(evaluations, 0.0)
    for image in tqdm(images, desc=name, unit=" images"):
        for way, evaluation in evaluations.items():
            start = time.perf_counter()
            evaluation.add(image)
            seconds[way] += time.perf_counter() - start
    results = {way: evaluation.result()["metrics"] for way, evaluation in evaluations.items()}
    return {**results, "seconds_per_image": round((seconds["search"] - seconds["encode"]) / len(images), 1)}


def earlier_models(output: Path) -> dict[str, dict]:
    """Results that are in the file already."""
    return json.loads(output.read_text())["models"] if output.exists() else {}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder whose every tenth photo is measured on")
    parser.add_argument("--model", action="append", help=f"default: {', '.join(MODELS)}; repeatable")
    parser.add_argument("--steps", type=int, default=100, help="default: 100")
    parser.add_argument("--output", type=Path, required=True, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    images = list(photos(args.photos, held_out=True))
    for name in args.model or MODELS:
        if name in earlier_models(args.output):
            continue
        result = measure(name, images, args.steps)
        for way in ("encode", "search"):
            m = result[way]
            print(f"{name}, {way}: PSNR {m['psnr_dataset']:.2f} dB, SSIMULACRA2 {m['ssimulacra2']:.2f}")
        models = {**earlier_models(args.output), name: result}  # another run may have written
        document = {"machine": describe_machine(), "steps": args.steps, "num_images": len(images), "models": models}
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
