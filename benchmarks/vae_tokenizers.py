"""Ways to make a Gaussian autoencoder discrete, at equal bits: Gaussian Quant, TokenBridge, product quantization of its
latents, and, for comparison, some of them trained further: networks and product quantizer, and networks with Gaussian
Quant's target divergence.

    python -m benchmarks.vae_tokenizers --output benchmarks/results/vae_tokenizers.json

The autoencoder is that of the shipped tiny-base (F = 8, 8 latent channels, trained on generated scenes of 64 px, KL weight
small). The first three ways take it as it is and see 500 other scenes; PSNR is that of 200 scenes that nothing has seen, by
the protocol of record. Training begins with what conversion gives and sees new scenes all the time.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.training_runs import trained_autoencoder
from pqdiff import AutoencoderPQ
from pqdiff.data.images.reading import normalize, to_pixels, to_tensor
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.fitting.gaussian_vae import convert_gaussian_vae, fit_on_latents, measure_posteriors
from pqdiff.metrics import DatasetPSNR
from pqdiff.metrics.evaluation import evaluate_reconstruction
from pqdiff.models.loading import load_autoencoder

SIDE, FITTED, MEASURED, SEED = 64, 500, 200, 977
# bits per position: settings
WAYS = {
    "Gaussian Quant": {
        32: {"codebook_size": 2**4, "codebook_dim": 1},
        48: {"codebook_size": 2**6, "codebook_dim": 1},
        64: {"codebook_size": 2**8, "codebook_dim": 1},
        72: {"codebook_size": 2**9, "codebook_dim": 1},
    },
    "TokenBridge": {32: {"num_bins": 16}, 48: {"num_bins": 64}, 64: {"num_bins": 256}, 72: {"num_bins": 512}},
    "PQ of latents": {
        32: {"num_subspaces": 4, "codebook_size": 256},
        48: {"num_subspaces": 4, "codebook_size": 4096},
        64: {"num_subspaces": 8, "codebook_size": 256},
        72: {"num_subspaces": 8, "codebook_size": 512},
    },
    "PQ of latents, trained": {32: {"num_subspaces": 4, "codebook_size": 256}},
    "Gaussian Quant, trained (TDC)": {32: {"codebook_size": 2**4, "codebook_dim": 1}},
}
TRAINED = ", trained"


def build(way: str, config: dict, vae, images, args) -> AutoencoderPQ:
    start, *trained = way.split(TRAINED)
    if start == "PQ of latents":
        model = fit_on_latents(vae, images, **config)
    else:
        kind = {"Gaussian Quant": "gaussian", "TokenBridge": "token_bridge"}[start]
        model = convert_gaussian_vae(vae, images, kind, config, force=True)
    return train(model, args.work / "-".join([start, *map(str, config.values())]), args.steps) if trained else model


def train(start: AutoencoderPQ, folder: Path, steps: int) -> AutoencoderPQ:
    """All weights, from where they are, for squared error. An interrupted training goes on."""
    if not folder.exists():
        start.save_pretrained(folder / "start")
    return trained_autoencoder(
        folder,
        init=str(folder / "start"),
        dataset="scenes",
        num_scenes=40_000,
        resolution=SIDE,
        steps=steps,
        batch_size=16,
        learning_rate=2e-4,
    )


@torch.no_grad()
def psnr_of(vae, images) -> float:
    """PSNR of the autoencoder itself, which decodes the means."""
    metric = DatasetPSNR()
    for image in images:
        pixels = to_tensor(image)[None]
        metric.update(to_pixels(vae.decode(vae.encode(normalize(pixels)).latent_dist.mean).sample), pixels)
    return round(float(metric.compute()), 3)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="of the training; 0: none (default: 200)")
    parser.add_argument("--work", type=Path, default=Path("runs/vae_tokenizers"), help="folder of the training runs")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    vae = load_autoencoder("tiny-base")
    scenes = SceneDataset(FITTED + MEASURED, SIDE, seed=SEED)
    fitted = [to_tensor(scenes[i]["image"]) for i in range(FITTED)]
    measured = [scenes[FITTED + i]["image"] for i in range(MEASURED)]
    bits = measure_posteriors(vae, fitted).bits
    rows = []
    for way, settings in WAYS.items():
        for per_position, config in settings.items():
            if TRAINED in way and not args.steps:
                continue
            start = time.perf_counter()
            model = build(way, config, vae, fitted, args)
            seconds = round(time.perf_counter() - start, 1)
            metrics = evaluate_reconstruction(model, measured, SIDE)["metrics"]
            rows.append(
                {"way": way, "bits_per_position": per_position, "config": config, "seconds": seconds, **metrics}
            )
            print(
                f"{way:16} {model.bits_per_pixel:.3f} bpp  PSNR {metrics['psnr_dataset']:.2f} dB  {seconds} s",
                flush=True,
            )
    document = {
        "machine": describe_machine(),
        "autoencoder": "tiny-base",
        "posterior_bits_per_channel": [round(float(b), 3) for b in bits],
        "psnr_dataset_of_the_autoencoder": psnr_of(vae, measured),
        "steps": args.steps,
        "rows": rows,
    }
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
