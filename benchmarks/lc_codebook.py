"""VQGAN-LC's ablations in small: where the frozen features come from, how many there are, and the projected dimension.

    python -m benchmarks.lc_codebook --photos PHOTOS/imagenet --also PHOTOS/bsds --work runs/lc \
        --output benchmarks/results/lc_codebook.json

The task is that of `benchmarks.quantizers --size linear` (64 px crops, a linear map of 8 x 8 patches, squared error), with
the published weight 0.1 of the quantizer's loss. Features are those of EfficientNet-Lite0 on the same photos, because no
CLIP can be had offline. PSNR is that of the held-out photos; usage is counted over the positions of every second training
photo at 256 px, about 0.6 million. At the end one step of the published networks
(F = 16, 256 px, batch 4, 100,000 x 768, gradient checkpointing, Adam) says how much memory it takes.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.memory import peak_tensor_bytes
from benchmarks.quantizers import RESOLUTION, SIZES, write_crops
from benchmarks.training_runs import trained_autoencoder
from pqdiff import AutoencoderPQ
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import load_image, normalize, to_tensor
from pqdiff.metrics import TokenCounts
from pqdiff.metrics.evaluation import evaluate_reconstruction
from training import build_lc_codebook
from training.fit_tokenizers import photos

FEATURE_DIM, GRID, FEATURE_SIDE = 1280, 10, 320  # of EfficientNet-Lite0: 100 features of each photo
RANDOM = "random numbers"
METHODS = {RANDOM: None, "random selection": "random_selection", "k-means": "kmeans"}
METHODS |= {f"{name}, unit length": method for name, method in list(METHODS.items())[1:]}
SELECTED, CLUSTERED = "random selection, unit length", "k-means, unit length"
# features, codebook_size, latent_channels, steps
POINTS = [
    *((features, 4096, 8, 1000) for features in METHODS),
    *((CLUSTERED, 4096, channels, 1000) for channels in (32, 128, 512)),
    *(("k-means", 1024, 8, steps) for steps in (1000, 5000)),
    *((CLUSTERED, 1024, 8, steps) for steps in (1000, 5000)),
    *((SELECTED, codebook_size, 8, 1000) for codebook_size in (16384, 100_000)),
]


def file_name(features: str) -> str:
    return f"{METHODS[features]}{'-unit' * features.endswith('unit length')}"


def features_file(args, features: str, codebook_size: int) -> str | None:
    """The table of this kind and size, which is built once. None for random numbers, which need no file."""
    if METHODS[features] is None:
        return None
    path = args.work / f"{file_name(features)}-{codebook_size}.safetensors"
    if not path.exists():
        folder = write_crops(args, RESOLUTION)
        options = {"dataset": folder, "method": METHODS[features], "codebook_size": codebook_size, "output": path}
        options |= {"grid": GRID, "resolution": FEATURE_SIDE, "work": args.work / "features", "passes": 2}
        arguments = [part for key, value in options.items() for part in (f"--{key}", str(value))]
        build_lc_codebook.main(arguments + ["--unit_length"] * features.endswith("unit length"))
    return str(path)


def measure(args, features: str, codebook_size: int, channels: int, steps: int) -> dict:
    """Train one point and measure it, unless that is done."""
    folder = args.work / f"{file_name(features)}-{codebook_size}-{channels}-{steps}"
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    size = dict(SIZES["linear"], steps=steps)
    start = time.perf_counter()
    model = trained_autoencoder(
        folder,
        model={
            "transform_type": size.pop("transform_type"),
            "transform_config": size.pop("transform_config"),
            "quantizer_type": "frozen_codebook",
            "quantizer_config": {"codebook_size": codebook_size, "feature_dim": FEATURE_DIM},
            "latent_channels": channels,
            "sample_size": size["resolution"],
        },
        **size,
        codebook_features=features_file(args, features, codebook_size),
        quantizer_weight=0.1,
        dataset=str(write_crops(args, size["resolution"])),
        random_flip=True,
        log_steps=100,
        fit_images=200,
    )
    seconds = round(time.perf_counter() - start, 1)
    metrics = evaluate_reconstruction(model, photos(args.photos, held_out=True), RESOLUTION)["metrics"]
    kept = {name: metrics[name] for name in ("psnr_dataset", "ssim", "bits_per_pixel", "entropy_bits_per_pixel")}
    result = {"features": features, "codebook_size": codebook_size, "latent_channels": channels, "steps": steps}
    result |= {**kept, **usage(model, write_crops(args, RESOLUTION)), "seconds": seconds}
    done.write_text(json.dumps(result, indent=1) + "\n")
    return result


@torch.no_grad()
def usage(model: AutoencoderPQ, folder: Path) -> dict:
    """How the codewords are used over the positions of every second training photo."""
    counts = TokenCounts(model.quantizer.codebook_sizes)
    for path in tqdm(sorted(folder.iterdir())[::2], desc="usage"):
        pixels = to_tensor(resize_and_crop(load_image(path), RESOLUTION))[None]
        counts.update(model.encode_to_indices(normalize(pixels)), RESOLUTION**2)
    values = {name: round(float(value), 5) for name, value in counts.compute().items()}
    return {"positions": int(counts.counts.sum()), **{k: v for k, v in values.items() if k.startswith("codebook_")}}


def step_memory() -> dict:
    """GiB of tensors in one step of the published size: weights, table, gradients, Adam's, and what is temporary."""
    config = {"block_out_channels": [128, 128, 256, 256, 512], "layers_per_block": 2, "mid_channels": 256}
    quantizer = {"codebook_size": 100_000, "feature_dim": 768}
    model = AutoencoderPQ(
        transform_config=config, quantizer_type="frozen_codebook", quantizer_config=quantizer, latent_channels=8
    ).train()
    model.enable_gradient_checkpointing()
    optimizer = torch.optim.Adam(model.parameters())
    stored = sum(tensor.nbytes for tensor in model.state_dict().values())

    def step() -> None:
        images = torch.rand(4, 3, 256, 256) * 2 - 1
        output = model(images)
        ((output.sample - images).abs().mean() + 0.1 * output.commit_loss).backward()
        optimizer.step()

    peak = peak_tensor_bytes(step)  # the first step: what Adam keeps is counted
    return {"stored_gib": round(stored / 2**30, 2), "step_gib": round((stored + peak) / 2**30, 2)}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder; every tenth photo is measured on")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="further folder to train on; repeatable"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/lc"), help="default: runs/lc")
    parser.add_argument("--only", type=int, help="number of a point: train it alone, so that processes share the work")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (features, codebook_size, channels, steps) in enumerate(POINTS):
        if args.only not in (None, number):
            continue
        rows.append(measure(args, features, codebook_size, channels, steps))
        row = rows[-1]
        print(
            f"{features:17} K {codebook_size:6} d {channels:3} steps {steps}: PSNR {row['psnr_dataset']:.2f} dB, "
            f"used {row['codebook_utilization']:.1%}, H_n {row['codebook_h_n']:.3f}",
            flush=True,
        )
    if args.only is not None:
        return
    document = {"machine": describe_machine(), "points": rows, "memory": step_memory()}
    print(document["memory"])
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
