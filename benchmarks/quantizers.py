"""All quantizers on one task: the same networks, steps and photos, three seeds; quality against bits per pixel.

    python -m benchmarks.quantizers --photos PHOTOS/imagenet --also PHOTOS/bsds --work runs/quantizers \
        --output benchmarks/results/quantizers.json --plot docs/quantizers.png

F = 8, squared error, no perceptual loss, no discriminator. `--size linear`, for two cores, is one linear map of 8 x 8
patches on each side of the quantizer, on 64 px crops of photos of 256 px: nothing but the quantizer bends space.
`--size small` are small networks on the same crops (hours on two cores), `--size large` the networks of the paper on whole
photos (a GPU). Every tenth photo of --photos is measured on, by the protocol of record (256 px, 8-bit output), and so are
JPEG, WebP and AVIF of the same photos. Runs that are in --work already are not repeated; `--only` trains some, so that two
processes can share the work.

Settings are those of each method's paper where it names them, at 32 bits per position where a method can have as many: one
table of 2^32 codewords cannot be, so methods with one token per position have fewer bits. Quality without the rate means
nothing: look at the curve.
"""

import argparse
import io
import json
import statistics
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image
from tqdm import tqdm

from benchmarks.machine import describe_machine
from benchmarks.memory import peak_tensor_bytes
from benchmarks.timing import interleaved_times, summary
from benchmarks.training_runs import trained_autoencoder
from pqdiff import AutoencoderPQ
from pqdiff.data.images.crops import resize_and_crop, resize_to_cover
from pqdiff.data.images.reading import normalize, to_pixels, to_tensor
from pqdiff.metrics import DatasetPSNR, ImagePSNR, ImageSSIM
from pqdiff.metrics.evaluation import evaluate_reconstruction
from pqdiff.quantizers.search import backends
from training.fit_tokenizers import photos, training_photos

# name: quantizer_type, latent_channels, quantizer_config, and the weight of the quantizer's loss where its paper has
# another than 1
METHODS = {
    "PQ (S = d/2)": ("product", 16, {"num_subspaces": 8, "codebook_size": 16}),
    "PQ with classes": (
        "classified_product",
        16,
        {"num_subspaces": 8, "codebook_size": 16, "components": 32, "bases": 4},
    ),
    "scalar (S = d)": ("product", 16, {"num_subspaces": 16, "codebook_size": 4}),
    "VQ": ("vector", 16, {"codebook_size": 4096}),
    "VQ-FC": ("vector", 4, {"codebook_size": 4096}),
    "VQ-EMA": ("vector", 16, {"codebook_size": 4096, "ema_decay": 0.99, "init": "normal"}),
    "VQ-LC (random features)": ("frozen_codebook", 8, {"codebook_size": 16384, "feature_dim": 768}, 0.1),
    "RQ": ("residual", 16, {"depth": 4, "codebook_size": 256}),
    "MCQ": ("multichannel", 16, {"num_subspaces": 4, "codebook_size": 256}),
    "FSQ": ("finite_scalar", 16, {"levels": 4, "num_subspaces": 4}),
    "LFQ": ("lookup_free", 32, {"num_subspaces": 4, "entropy_bits": 8, "commitment_weight": 0.25}),
    "BSQ": ("binary_spherical", 32, {"num_subspaces": 1}),
    "GQ + TDC": ("gaussian", 16, {"codebook_size": 256, "codebook_dim": 4}),
    "TokenBridge levels, trained around": ("token_bridge", 16, {"num_bins": 4}),
}
SIZES = {
    "linear": {
        "transform_type": "patch",
        "transform_config": {"patch_size": 8},
        "resolution": 64,
        "steps": 1500,
        "batch_size": 16,
        "learning_rate": 1e-2,
    },
    "small": {
        "transform_type": "conv",
        "transform_config": {
            "block_out_channels": [32, 32, 64, 64],
            "layers_per_block": 1,
            "norm_num_groups": 16,
            "mid_channels": 64,
        },
        "resolution": 64,
        "steps": 5000,
        "batch_size": 16,
        "learning_rate": 1e-3,
    },
    "large": {
        "transform_type": "conv",
        "transform_config": {},
        "resolution": 256,
        "steps": 100_000,
        "batch_size": 16,
        "learning_rate": 1e-4,
    },
}
CODECS = {"JPEG": (5, 10, 20, 40, 60, 75, 90), "WebP": (1, 5, 20, 50, 80, 95), "AVIF": (5, 15, 30, 50, 70, 90)}
RESOLUTION = 256
CONTINUOUS = "GQ + TDC"  # a Gaussian autoencoder while it trains
CROPS = 8  # of every training photo


def write_crops(args, side: int) -> Path:
    """Training images: crops of `side` px of photos whose shorter side is 256 px, or those photos."""
    folder = args.work / f"crops-{side}"
    if folder.exists():
        return folder
    temporary = args.work / f"crops-{side}.part"
    temporary.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(0)
    for number, image in enumerate(tqdm(training_photos(args), desc="crops")):
        image = resize_to_cover(image, RESOLUTION)
        for crop in range(CROPS if side < RESOLUTION else 1):
            left, top = (int(torch.randint(s - side + 1, (), generator=generator)) for s in image.size)
            part = image.crop((left, top, left + side, top + side)) if side < RESOLUTION else image
            part.save(temporary / f"{number:05d}-{crop}.png", compress_level=1)
    temporary.rename(folder)
    return folder


def run_folder(args, name: str, seed: int) -> Path:
    return args.work / args.size / f"{''.join(c if c.isalnum() else '-' for c in name)}-{seed}"


def train(args, name: str, seed: int, crops: Path) -> dict:
    """Train one method from one seed and measure it, unless that is done."""
    kind, channels, config, *weight = METHODS[name]
    size = dict(SIZES[args.size])
    folder = run_folder(args, name, seed)
    done = folder / "result.json"
    if done.exists():
        return json.loads(done.read_text())
    model = trained_autoencoder(
        folder,
        model={
            "transform_type": size.pop("transform_type"),
            "transform_config": size.pop("transform_config"),
            "quantizer_type": kind,
            "quantizer_config": config,
            "latent_channels": channels,
            "sample_size": size["resolution"],
        },
        **{**size, "steps": args.steps or size["steps"]},
        dataset=str(crops),
        random_flip=True,
        seed=seed,
        log_steps=100,
        fit_images=500,
        quantizer_weight=weight[0] if weight else 1.0,
    )
    metrics = evaluate_reconstruction(model, photos(args.photos, held_out=True), RESOLUTION)["metrics"]
    result = {"metrics": metrics}
    done.write_text(json.dumps(result, indent=1) + "\n")
    return result


@torch.no_grad()
def cost(model: AutoencoderPQ) -> dict:
    """What the quantizer costs for an image of 256 px.

    Images per second of the search alone; its peak of tensors in MB beyond its input, all in plain torch because memory of
    the native search is not seen; and MB that the quantizer stores.
    """
    quantizer = model.quantizer
    z = torch.randn(1, quantizer.in_channels, *[RESOLUTION // model.downsample_factor] * 2)
    times = summary(interleaved_times({"search": lambda: quantizer.encode(z)}, 5))
    with backends.use_backend("plain"):
        quantizer.encode(z)
        peak = peak_tensor_bytes(lambda: quantizer.encode(z))
    return {
        "search_images_per_second": round(1e3 / times["search"]["median"], 1),
        "search_megabytes": round(peak / 1e6, 3),
        "stored_megabytes": round(sum(tensor.nbytes for tensor in quantizer.state_dict().values()) / 1e6, 4),
    }


@torch.no_grad()
def continuous(args, images: list[Image.Image]) -> dict:
    """What the Gaussian autoencoder of `GQ + TDC` gives without tokens, decoded from its means: mean over the seeds."""
    runs = []
    for seed in range(args.seeds):
        folder = run_folder(args, CONTINUOUS, seed) / "run" / "autoencoder"
        model = AutoencoderPQ.from_pretrained(folder).eval()
        metrics = {"psnr_dataset": DatasetPSNR(), "ssim": ImageSSIM()}
        for image in images:
            pixels = to_tensor(image)[None]
            means = model.transform.analysis(normalize(pixels))[:, : model.config.latent_channels]
            for metric in metrics.values():
                metric.update(to_pixels(model.transform.synthesis(means)), pixels)
        runs.append({name: float(metric.compute()) for name, metric in metrics.items()})
    return {name: round(statistics.mean(run[name] for run in runs), 4) for name in runs[0]}


def codec_curves(images: list[Image.Image]) -> dict[str, list[dict]]:
    """Rate and quality of each codec at several qualities, on the crops that the quantizers are measured on."""
    curves = {}
    for codec, qualities in CODECS.items():
        curves[codec] = []
        for quality in qualities:
            metrics, size, pixels = (
                {"psnr_dataset": DatasetPSNR(), "psnr_image_mean": ImagePSNR(), "ssim": ImageSSIM()},
                0,
                0,
            )
            for image in images:
                file = io.BytesIO()
                image.save(file, codec, quality=quality)
                size, pixels = size + file.tell(), pixels + image.width * image.height
                result = to_tensor(Image.open(file).convert("RGB"))[None]
                for metric in metrics.values():
                    metric.update(result, to_tensor(image)[None])
            values = {name: round(float(metric.compute()), 4) for name, metric in metrics.items()}
            curves[codec].append({"quality": quality, "bits_per_pixel": round(8 * size / pixels, 4), **values})
    return curves


def summarize(runs: list[dict]) -> dict:
    """Number of seeds, and mean and standard deviation over them of every metric."""
    numbers = {}
    for key in runs[0]["metrics"]:
        values = [run["metrics"][key] for run in runs]
        if None not in values:
            spread = statistics.stdev(values) if len(values) > 1 else None
            numbers[key] = {"mean": round(statistics.mean(values), 5), "std": spread and round(spread, 5)}
    return {"seeds": len(runs), "metrics": numbers}


def plot(document: dict, path: Path) -> None:
    """PSNR and SSIM against bits per pixel: methods as points with their spread over seeds, codecs as curves."""
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state

    figure = Figure(figsize=(12, 5), layout="constrained")
    for axis, key, label in zip(figure.subplots(1, 2), ("psnr_dataset", "ssim"), ("PSNR [dB]", "SSIM"), strict=True):
        for number, (name, result) in enumerate(document["methods"].items()):
            values = result["metrics"]
            rate, quality = values["bits_per_pixel"]["mean"], values[key]
            axis.errorbar(
                rate,
                quality["mean"],
                quality["std"],
                marker="os^v<>DPXph*dH"[number],
                color=f"C{number % 10}",
                label=name,
                linestyle="none",
            )
        for codec, curve in document["codecs"].items():
            points = [point for point in curve if point["bits_per_pixel"] < 1.5]
            axis.plot(
                [p["bits_per_pixel"] for p in points],
                [p[key] for p in points],
                color="gray",
                linestyle={"JPEG": ":", "WebP": "--", "AVIF": "-"}[codec],
                label=codec,
            )
        if document.get("continuous"):
            axis.axhline(document["continuous"][key], color="gray", linewidth=0.8, label=f"no tokens ({CONTINUOUS})")
        axis.set(xlabel="bits per pixel", ylabel=label)
        axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def results(args) -> Iterator[tuple[str, list[dict]]]:
    crops = write_crops(args, SIZES[args.size]["resolution"])
    for name in args.only or METHODS:
        yield name, [train(args, name, seed, crops) for seed in range(args.seeds)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder; every tenth photo is measured on")
    parser.add_argument(
        "--also", type=Path, action="append", default=[], help="further folder to train on; repeatable"
    )
    parser.add_argument("--work", type=Path, default=Path("runs/quantizers"), help="default: runs/quantizers")
    parser.add_argument("--size", choices=SIZES, default="linear", help="default: linear")
    parser.add_argument("--steps", type=int, help="default: as the size says")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    parser.add_argument("--only", action="append", choices=METHODS, metavar="METHOD", help="default: all; repeatable")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--plot", type=Path, help="file for the plot")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    methods = {}
    for name, runs in results(args):
        model = AutoencoderPQ.from_pretrained(run_folder(args, name, 0) / "run" / "autoencoder").eval()
        methods[name] = {**summarize(runs), **cost(model)}
    held_out = [resize_and_crop(image, RESOLUTION) for image in photos(args.photos, held_out=True)]
    document = {
        "machine": describe_machine(),
        "task": {
            "size": args.size,
            **SIZES[args.size],
            "measured_on": len(held_out),
            "resolution_measured": RESOLUTION,
        },
        "methods": methods,
        "codecs": codec_curves(held_out),
        "continuous": continuous(args, held_out) if CONTINUOUS in methods else None,
    }
    if args.steps:
        document["task"]["steps"] = args.steps
    for name, result in methods.items():
        values = result["metrics"]
        print(f"{name:36} {values['bits_per_pixel']['mean']:.3f} bpp  PSNR {values['psnr_dataset']['mean']:.2f} dB")
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.plot:
        plot(document, args.plot)


if __name__ == "__main__":
    main()
