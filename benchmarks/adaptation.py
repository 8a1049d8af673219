"""How the widened projections should start, and how latents should be scaled, on the tiny suite.

    python -m benchmarks.adaptation --output benchmarks/results/adaptation.json --plot docs/adaptation.png

The tiny base is adapted to the latents of tiny-precise (F8, d = 32) by freeze-then-finetune, once per init and seed:
validation loss in the freeze stage (its end with `copy` is what `lstsq`, which solves the projections, has to meet at
step 0), then prompts right while all weights are trained. All with the exponent gamma of the latents' standardization that
the tokenizer has; then the other exponents, with `variance`. Loss: mean squared error of v over fixed scenes, noise and
timesteps that no training saw. Losses of different gamma weigh channels differently and cannot be compared; prompts right
can.
"""

import argparse
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.attention_processor import AttnProcessor

from benchmarks.machine import describe_machine
from benchmarks.tiny_suite import decoded, sample_latents
from pqdiff import AutoencoderPQ, PQStableDiffusionPipeline, bundled
from pqdiff.adaptation.widen import projection_parameters, set_trainable
from pqdiff.data.captions.captioned import open_captioned
from pqdiff.data.scenes.checker import count_right, read_scenes
from pqdiff.data.scenes.scenes import scene_prompts
from pqdiff.training.batches import Layout
from pqdiff.training.diffusion import DiffusionObjective
from pqdiff.training.randomness import generator_for
from pqdiff.training.samples import ImageSamples, Preparation, latents_of
from pqdiff.training.solve import solve_conv_in, solve_conv_out
from pqdiff.training.text import encode_captions

INITS = ("copy", "variance", "mmse", "zero", "lstsq")
GAMMAS = (0.0, 0.5, 1.0)
CPU = torch.device("cpu")


def with_exponent(autoencoder: AutoencoderPQ, gamma: float) -> AutoencoderPQ:
    """The same autoencoder with another scaling of its latents."""
    statistics = {**autoencoder.config.statistics_config, "exponent": gamma}
    copy = AutoencoderPQ.from_config(autoencoder.config, statistics_config=statistics)
    copy.load_state_dict(autoencoder.state_dict())
    return copy.eval().requires_grad_(False)


class Experiment:
    """The base, its adaptations and the data they share."""

    def __init__(self, args):
        self.args = args
        self.base = StableDiffusionPipeline.from_pretrained(
            args.base or bundled("tiny-base"), torch_dtype=torch.float32
        )
        precise = args.autoencoder or str(Path(bundled("tiny-precise")) / "vae")
        self.autoencoder = AutoencoderPQ.from_pretrained(precise, torch_dtype=torch.float32).eval()
        self.resolution = self.autoencoder.config.sample_size
        self.pictures = open_captioned("scenes", num_samples=20_000, resolution=self.resolution, seed=11)
        preparation = Preparation(self.resolution, self.autoencoder.downsample_factor, caption_dropout=0.1)
        self.samples = ImageSamples(self.pictures, preparation)
        self.prompts = scene_prompts(args.num_prompts, seed=1)
        self.layout = Layout(args.batch_size)

    def pipeline(self, init: str, gamma: float, seed: int) -> PQStableDiffusionPipeline:
        """The base on PQ latents, with projections that start in the given way."""
        torch.manual_seed(seed)
        autoencoder, conv_in_map = with_exponent(self.autoencoder, gamma), None
        if init == "lstsq":
            conv_in_map = solve_conv_in(self.pictures, self.resolution, self.base.vae, autoencoder, CPU)
        pipeline = PQStableDiffusionPipeline.from_stable_diffusion(
            self.base, autoencoder, init=init, conv_in_map=conv_in_map
        )
        pipeline.unet.set_attn_processor(AttnProcessor())
        pipeline.set_progress_bar_config(disable=True)
        if init == "lstsq":
            objective = DiffusionObjective(pipeline.scheduler)
            solve_conv_out(pipeline, objective, self.batches(seed + 500, self.args.solve_batches), seed, CPU)
        return pipeline

    def batches(self, seed: int, count: int):
        return self.samples.batches(self.layout, seed, 0, count)

    @torch.no_grad()
    def validation_loss(self, pipeline) -> float:
        """Mean squared error on scenes, noise and timesteps that are the same for every pipeline."""
        objective, losses = DiffusionObjective(pipeline.scheduler), []
        for number, [batch] in enumerate(self.batches(999_999, self.args.validation_batches)):
            latents = latents_of(batch, pipeline.vae, CPU)
            generators = [generator_for(999_999, number, slot) for slot in range(len(latents))]
            sample = objective.noisy(latents, generators)
            states = encode_captions(pipeline.tokenizer, pipeline.text_encoder, batch["captions"])
            prediction = pipeline.unet(sample.latents, sample.timesteps, states).sample
            losses.append(objective.loss(prediction, sample).item())
        return statistics.fmean(losses)

    def train(
        self, pipeline, trainable: str, steps: int, rate: float, seed: int, measure_at: list[int], measure
    ) -> dict:
        """Train, and return `measure(pipeline)` by step, at the given steps."""
        # What the freeze stage learns is what `lstsq` solves and validation asks: all timesteps alike.
        density = tuple(self.args.noise_density) if trainable == "all" else None
        unet, objective = pipeline.unet, DiffusionObjective(pipeline.scheduler, noise_density=density)
        set_trainable(unet, trainable)
        parameters = projection_parameters(unet) if trainable == "projections" else list(unet.parameters())
        optimizer = torch.optim.AdamW(parameters, rate, fused=True)
        results = {0: measure(pipeline)} if 0 in measure_at else {}
        for step, [batch] in enumerate(self.batches(seed, steps), start=1):
            generators = [generator_for(seed, "noise", step, slot) for slot in range(self.args.batch_size)]
            sample = objective.noisy(latents_of(batch, pipeline.vae, CPU), generators)
            with torch.no_grad():
                states = encode_captions(pipeline.tokenizer, pipeline.text_encoder, batch["captions"])
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.args.mixed_precision == "bf16"):
                prediction = unet(sample.latents, sample.timesteps, states).sample
            objective.loss(prediction, sample).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            if step in measure_at:
                results[step] = measure(pipeline)
        return results

    def prompts_right(self, pipeline) -> float:
        """Fraction of prompts that are fully right."""
        latents = sample_latents(pipeline, self.prompts, self.args.inference_steps, 2.0, 50)
        pictures = decoded(pipeline.vae, latents)
        return count_right(read_scenes(pictures), self.prompts)["all"]

    def run(self, init: str, gamma: float, seed: int) -> dict:
        """Freeze stage, then fine-tuning of all weights."""
        args, start = self.args, time.perf_counter()
        pipeline = self.pipeline(init, gamma, seed)
        built = time.perf_counter() - start
        freeze = self.train(
            pipeline, "projections", args.freeze_steps, args.freeze_rate, seed,
            spread(args.freeze_steps, 8), self.validation_loss,
        )  # fmt: skip
        right = self.train(
            pipeline, "all", args.finetune_steps, args.finetune_rate, seed + 100,
            spread(args.finetune_steps, 3), self.prompts_right,
        )  # fmt: skip
        result = {
            "init": init,
            "gamma": gamma,
            "seed": seed,
            "seconds_to_build": round(built, 1),
            "validation_loss_in_freeze_stage": freeze,
            "validation_loss_at_end": self.validation_loss(pipeline),
            "prompts_right_in_finetuning": right,
        }
        print(json.dumps(result), flush=True)
        return result


def spread(steps: int, count: int) -> list[int]:
    """0, some steps between with early ones dense, and the last."""
    return sorted({0, steps, *(round(steps * (i / count) ** 2) for i in range(1, count))})


def plot(runs: list[dict], path: Path) -> None:
    """Loss in the freeze stage and prompts right in fine-tuning, mean over seeds with their range."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(15, 4.2))
    usual = runs[0]["gamma"]
    freeze, right = "validation_loss_in_freeze_stage", "prompts_right_in_finetuning"
    panels = (
        (freeze, "validation loss, freeze stage", lambda run: run["init"] if run["gamma"] == usual else None),
        (right, "prompts right, all weights", lambda run: run["init"] if run["gamma"] == usual else None),
        (
            right,
            "prompts right, by gamma",
            lambda run: f"gamma {run['gamma']:g}" if run["init"] == "variance" else None,
        ),
    )
    for axis, (key, title, label) in zip(axes, panels, strict=True):
        for name in dict.fromkeys(filter(None, map(label, runs))):
            curves = [run[key] for run in runs if label(run) == name]
            steps = list(curves[0])
            means = [statistics.fmean(curve[step] for curve in curves) for step in steps]
            numbers = [int(step) for step in steps]
            axis.plot(numbers, means, marker="o", markersize=3, label=name)
            low, high = ([f(curve[step] for curve in curves) for step in steps] for f in (min, max))
            axis.fill_between(numbers, low, high, alpha=0.15)
        axis.set(title=title, xlabel="steps")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7)
    axes[0].set_yscale("log")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder of the base; default: tiny-base")
    parser.add_argument("--autoencoder", help="folder of the PQ autoencoder; default: that of tiny-precise")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--batch_size", type=int, default=32, help="default: 32")
    parser.add_argument("--freeze_steps", type=int, default=200, help="default: 200")
    parser.add_argument("--freeze_rate", type=float, default=1e-3, help="learning rate; default: 1e-3")
    parser.add_argument("--finetune_steps", type=int, default=400, help="default: 400")
    parser.add_argument("--finetune_rate", type=float, default=5e-4, help="learning rate; default: 5e-4")
    parser.add_argument(
        "--noise_density", type=float, nargs=2, default=[0.4, 1.8], metavar=("MEAN", "DEVIATION"),
        help="ln(noise / signal) of the timesteps when all weights are trained; default: 0.4 1.8",
    )  # fmt: skip
    parser.add_argument("--solve_batches", type=int, default=64, help="of lstsq; default: 64")
    parser.add_argument("--validation_batches", type=int, default=8, help="default: 8")
    parser.add_argument("--num_prompts", type=int, default=100, help="default: 100")
    parser.add_argument("--inference_steps", type=int, default=20, help="default: 20")
    parser.add_argument(
        "--mixed_precision", choices=("no", "bf16"), default="no", help="bf16 pays only on processors that have it"
    )
    parser.add_argument("--only", help="part of the runs, e.g. 0/2 and 1/2 on two cores; then join with --join")
    parser.add_argument("--join", type=Path, nargs="+", help="result files of parts; nothing is run")
    parser.add_argument("--output", type=Path, required=True, help="file for the results as JSON")
    parser.add_argument("--plot", type=Path, help="picture")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.join:
        documents = [json.loads(path.read_text()) for path in args.join]
        document = {**documents[0], "runs": [run for document in documents for run in document["runs"]]}
    else:
        experiment = Experiment(args)
        usual = experiment.autoencoder.config.statistics_config["exponent"]
        wanted = [(init, usual) for init in INITS] + [("variance", gamma) for gamma in GAMMAS if gamma != usual]
        runs = list(itertools.product(range(args.seeds), wanted))
        if args.only:
            part, parts = map(int, args.only.split("/"))
            runs = runs[part::parts]
        protocol = {k: v for k, v in vars(args).items() if isinstance(v, int | float | list)}
        document = {"machine": describe_machine(), "protocol": protocol, "runs": []}
        for seed, (init, gamma) in runs:
            document["runs"].append(experiment.run(init, gamma, seed))
            args.output.write_text(json.dumps(document, indent=1) + "\n")
    document = json.loads(json.dumps(document))  # step numbers become text, as in a file
    args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.plot:
        plot(document["runs"], args.plot)


if __name__ == "__main__":
    main()
