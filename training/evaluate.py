"""Measure reconstructions of tokenizers, other autoencoders and codecs, and what pipelines generate, on many images.

    accelerate launch training/evaluate.py --dataset photos/ --models pqgan-f8-d128-s64-k512 jpeg:75 avif@1.75bpp \
        --output metrics.json
    accelerate launch training/evaluate.py --dataset imagenet-val/ --models runs/f8/autoencoder --protocol paper \
        --networks inception lpips_alex --output metrics.json
    accelerate launch training/evaluate.py --dataset scenes --num_images 500 --pipelines tiny-precise tiny-quick \
        --steps 25 --guidance 2 --output metrics.json

A pipeline generates one image from the caption of each image of the data set, and the two sets are compared.
Any number of processes gives the result of one. If it is killed, the same command continues. Numbers that need a network
whose weights are missing are null, and `missing` says what to get (docs/feature_metrics.md).
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from tqdm import tqdm

from pqdiff.data.captions.captioned import SCENES, StreamedImages, open_captioned
from pqdiff.data.files import atomic_file, check_new_file
from pqdiff.hub.local_paths import public_name
from pqdiff.hub.pipelines import load_pipeline
from pqdiff.metrics.evaluation import PROTOCOLS, Evaluation, EvaluationRun
from pqdiff.metrics.generation import GenerationEvaluation
from pqdiff.metrics.perception import NETWORKS, perception_metrics
from pqdiff.metrics.reconstructors import build_reconstructor
from pqdiff.metrics.robustness import with_noise
from pqdiff.models.fingerprint import fingerprint
from pqdiff.training.run_options import check_integers
from pqdiff.training.stopping import end_in_one_line

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def parse(argv=None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    data = parser.add_argument_group("images")
    data.add_argument("--dataset", required=True, help=f"folder of images or tar files, Hub id, or {SCENES}")
    data.add_argument("--image_column", help="column of images")
    data.add_argument("--split", default="train", help="split of the data set (default: train)")
    data.add_argument("--streaming", action="store_true", help="read a Hub data set as a stream")
    data.add_argument("--num_images", type=int, help=f"use only the first ones; number of {SCENES} (default: 1000)")
    data.add_argument("--strict", action="store_true", help="stop at an image that cannot be read (default: name it)")
    models = parser.add_argument_group("models")
    models.add_argument(
        "--models", nargs="+", default=[],
        help="shipped names, folders or Hub ids of autoencoders, and codecs: jpeg:75, webp:80, avif@1.75bpp",
    )  # fmt: skip
    models.add_argument(
        "--noise", nargs="+", type=float, default=[],
        help="also measure tokenizers with noise of these standard deviations on their latents, such as 0.1 0.3",
    )  # fmt: skip
    models.add_argument("--dtype", choices=PRECISIONS, default="fp32", help="of the models (default: fp32)")
    models.add_argument("--pipelines", nargs="+", default=[], help="shipped names, folders or Hub ids of pipelines")
    models.add_argument("--steps", type=int, default=50, help="of a generated image (default: 50)")
    models.add_argument("--guidance", type=float, default=7.5, help="guidance scale (default: 7.5)")
    models.add_argument("--seed", type=int, default=0, help="of the first generated image (default: 0)")
    protocol = parser.add_argument_group("protocol")
    protocol.add_argument("--resolution", type=int, default=256, help="side in pixels (default: 256)")
    protocol.add_argument("--protocol", choices=PROTOCOLS, default="pqdiff", help="how images come to that size")
    protocol.add_argument("--networks", nargs="*", choices=NETWORKS, default=["efficientnet_lite0"],
                          help="networks of further metrics (default: efficientnet_lite0)")  # fmt: skip
    protocol.add_argument("--weights", nargs="*", default=[], metavar="NETWORK=FILE", help="files of their weights")
    protocol.add_argument("--download", action="store_true", help="download weights that are missing")
    run = parser.add_argument_group("run")
    run.add_argument("--output", type=Path, required=True, help="file for the metrics")
    run.add_argument("--force", action="store_true", help="replace the file if it is there")
    run.add_argument("--save_every", type=int, default=200, help="images between two saves (default: 200)")
    args = parser.parse_args(argv)
    check_integers(vars(args))
    for name in ("num_images", "save_every", "steps"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    names = [
        public_name(name) for name in (*args.models, *args.pipelines)
    ]  # under which the results stand in the file
    if not names:
        parser.error("--models or --pipelines: name at least one")
    if twice := {name for name in names if names.count(name) > 1}:
        parser.error(f"models must have different names, {', '.join(twice)} comes twice: rename or link a folder")
    return args


def main(argv=None) -> dict:
    """Measure, write the file, and return what it holds."""
    args = parse(argv)
    check_new_file(args.output, args.force)
    weights = {}
    for text in args.weights:
        network, separator, file = text.partition("=")
        if not separator:
            raise ValueError(f"--weights ({text}) must be NETWORK=FILE, such as inception=pt_inception.pth")
        weights[network] = file
    accelerator = Accelerator()
    options = {"num_samples": args.num_images or 1000, "resolution": args.resolution, "captions": bool(args.pipelines)}
    images = open_captioned(args.dataset, args.image_column, None, args.split, args.streaming, **options)
    if args.num_images and args.dataset != SCENES:
        images = images.take(args.num_images)
    perception = sets = None
    if args.networks:
        options = {"weights": weights, "download": args.download, "device": accelerator.device}
        perception = perception_metrics(args.networks, **options) if args.models else None
        sets = perception_metrics(args.networks, **options, paired=False) if args.pipelines else None
    evaluations = {}
    for name in args.pipelines:
        own = sets.again() if sets is not None else None
        evaluations[name] = generation(load_pipeline(name, PRECISIONS[args.dtype]), args, own, accelerator.device)
    for name in args.models:
        reconstructor = build_reconstructor(name, torch_dtype=PRECISIONS[args.dtype])
        if hasattr(reconstructor, "model"):
            reconstructor.model.to(accelerator.device)
        for one in (reconstructor, *with_noise(reconstructor, args.noise)):
            own = perception.again() if perception is not None else None  # the networks are shared
            evaluations[one.name] = Evaluation(one, args.resolution, args.protocol, own)
            evaluations[one.name].metrics.to(accelerator.device)
    work = args.output.with_name(args.output.name + ".work")
    run = EvaluationRun(
        evaluations, accelerator.process_index, accelerator.num_processes, args.strict, work,
        recipe_of(args, evaluations), args.save_every,
    )  # fmt: skip
    total = None if isinstance(images, StreamedImages) else -(-len(images) // accelerator.num_processes)
    with tqdm(total=total, initial=run.done, unit=" images", disable=not accelerator.is_main_process) as progress:
        run.run(images, lambda done: progress.update(done - progress.n))
    results = run.results()
    for name, result in results.items():
        result["data"] = public_name(args.dataset)
        if accelerator.is_main_process:
            print(f"{name}: " + ", ".join(f"{k} {v:.4g}" for k, v in result["metrics"].items() if v is not None))
    if accelerator.is_main_process:
        with atomic_file(args.output) as temporary:
            temporary.write_text(json.dumps({public_name(k): v for k, v in results.items()}, indent=2) + "\n")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        run.forget()
    return results


def generation(pipeline, args, perception, device) -> GenerationEvaluation:
    """The evaluation of a pipeline, whose images have the size that it was trained at."""
    pipeline.to(device).set_progress_bar_config(disable=True)

    def generate(prompt: str, seed: int) -> torch.Tensor:
        image = pipeline(
            prompt, num_inference_steps=args.steps, guidance_scale=args.guidance, output_type="pt",
            generator=torch.Generator("cpu").manual_seed(seed),
        ).images[0]  # fmt: skip
        return (image.float().clamp(0, 1) * 255).round().byte()

    described = {
        "pipeline": type(pipeline).__name__,
        "autoencoder": fingerprint(pipeline.vae),
        "unet": fingerprint(pipeline.unet),
        "scheduler": type(pipeline.scheduler).__name__,
        "steps": args.steps,
        "guidance": args.guidance,
        "dtype": args.dtype,
    }
    evaluation = GenerationEvaluation(generate, args.seed, perception, described)
    evaluation.prompts.to(device)
    return evaluation


def recipe_of(args, evaluations: dict[str, Evaluation]) -> dict:
    """What the sums depend on; the run that continues must have the same."""
    names = ("image_column", "split", "num_images", "resolution", "protocol", "networks", "dtype", "seed")
    described = {
        name: e.description if isinstance(e, GenerationEvaluation) else e.reconstructor.describe()
        for name, e in evaluations.items()
    }
    return {**{name: getattr(args, name) for name in names}, "dataset": str(args.dataset), "models": described}


def run() -> None:
    """Call `main`; a user's mistake ends with one line and exit code 2."""
    with end_in_one_line("evaluate"):
        main()


if __name__ == "__main__":
    run()
