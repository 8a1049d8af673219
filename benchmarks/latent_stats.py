"""What a diffusion model will meet: the latents of every tokenizer, and what errors in them do to the picture.

    python -m benchmarks.latent_stats --photos PHOTOS/imagenet --every 10 \
        --output benchmarks/results/latent_stats.json --plot docs/latent_stats.png

Of the standardized latents of photos (shorter side by Lanczos, center crop): variance of the channels, their correlation,
their spectrum over positions, the use of the codebooks, and the PSNR after Gaussian noise on the latents, decoded in three
ways: snapped to the nearest codewords, as they are, and softly snapped (the mean of the codewords given the latents, for
the true noise level). Noise is relative to the root mean square of the latents' standard deviations.
"""

import argparse
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import pqdiff
from benchmarks.latent_statistics import LatentMoments, LatentSpectrum
from benchmarks.machine import describe_machine
from pqdiff.data.captions.captioned import iterate_images
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import normalize, to_pixels, to_tensor
from pqdiff.metrics import CodebookUsage, DatasetPSNR
from pqdiff.models.fingerprint import fingerprint
from pqdiff.models.loading import load_tokenizer

NOISE = (0.0, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0)
WAYS = {"snapped": ":", "free": "--", "soft": "-"}  # and their lines in the plot


@torch.no_grad()
def measure(autoencoder, photos: torch.Tensor, batch_size: int = 8, seed: int = 0) -> dict:
    """All statistics of an autoencoder on uint8 photos `(N, 3, H, W)`."""
    moments, spectrum = LatentMoments(), LatentSpectrum()
    usage = CodebookUsage(autoencoder.quantizer.codebook_sizes)
    for pixels in photos.split(batch_size):
        encoded = autoencoder.encode(normalize(pixels))
        moments.update(encoded.latents)
        usage.update(encoded.indices)
    for pixels in photos.split(batch_size):
        spectrum.update(autoencoder.encode(normalize(pixels)).latents, moments.mean)
    used = {key: round(float(value), 4) for key, value in usage.compute().items()}
    return {
        "fingerprint": fingerprint(autoencoder),
        "latents": moments.compute(),
        "positions": spectrum.compute(),
        "codebook": used,
        "psnr_under_noise": psnr_under_noise(autoencoder, photos, moments.deviation, batch_size, seed),
    }


@torch.no_grad()
def psnr_under_noise(autoencoder, photos, deviation: float, batch_size: int, seed: int) -> dict[str, dict[str, float]]:
    """PSNR of the data set in dB by relative standard deviation of the noise: `{"0.1": {"snapped": .., "free": ..}}`, and
    `soft` where the quantizer has soft snapping."""
    ways = [way for way in WAYS if way != "soft" or autoencoder.quantizer.has_posterior_mean]
    metrics = {(std, way): DatasetPSNR() for std in NOISE for way in ways}
    generator = torch.Generator().manual_seed(seed)
    for pixels in photos.split(batch_size):
        latents = autoencoder.encode(normalize(pixels)).latents
        noise = deviation * torch.randn(latents.shape, generator=generator)
        for (std, way), psnr in metrics.items():
            quantize = {"snapped": True, "free": False, "soft": std * deviation or True}[way]  # no noise: nearest
            psnr.update(to_pixels(autoencoder.decode(latents + std * noise, quantize=quantize).sample), pixels)
    values = {key: round(float(psnr.compute()), 2) for key, psnr in metrics.items()}
    return {f"{std:g}": {way: values[std, way] for way in ways} for std in NOISE}


def plot(results: dict[str, dict], path: Path) -> None:
    """Variance of the channels by rank, power by spatial frequency, PSNR by noise; one color per tokenizer."""
    from matplotlib.figure import Figure  # without pyplot: needs no display, leaves no state

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    variances, bands, noise = figure.subplots(1, 3)
    for number, (name, result) in enumerate(results.items()):
        color = f"C{number}"
        channels = sorted(result["latents"]["channel_variance"], reverse=True)
        variances.plot([(i + 1) / len(channels) for i in range(len(channels))], channels, color=color, label=name)
        power = result["positions"]["power"]
        bands.plot(list(power), list(power.values()), "o-", color=color)
        stds = [std for std in NOISE if std]
        for way, style in WAYS.items():
            psnr = [result["psnr_under_noise"][f"{std:g}"].get(way, math.nan) for std in stds]
            noise.plot(stds, psnr, style, color=color)
    variances.set(yscale="log", xlabel="channel by rank, part of d", ylabel="variance")
    bands.axhline(1, color="gray", linewidth=0.8)  # white noise
    bands.set(yscale="log", xlabel="spatial frequency", ylabel="power relative to white noise")
    noise.set(xscale="log", xlabel="relative noise", ylabel="PSNR, dB (soft -, nearest :, as is --)")
    variances.legend(fontsize=7)
    for axes in (variances, bands, noise):
        axes.grid(alpha=0.3)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def load_photos(source: str, every: int, resolution: int) -> torch.Tensor:
    """uint8 photos `(N, 3, resolution, resolution)`.

    Raises:
        ValueError: if there are none, or one cannot be read.
    """
    images = [image for i, image in enumerate(iterate_images(source)) if i % every == 0]
    return torch.stack([to_tensor(resize_and_crop(image, resolution)) for image in images])


def for_card(document: dict, name: str) -> dict:
    """What `pqdiff.hub.closed_form_card.write_closed_form_card` takes as `latents`, from a whole result."""
    return {**{key: document[key] for key in ("num_images", "data", "resolution")}, **document["autoencoders"][name]}


def earlier_results(path: Path, document: dict) -> dict[str, dict]:
    """What a result file says of the same photos: tokenizers can be measured in parts."""
    earlier = json.loads(path.read_text()) if path.exists() else {}
    same = all(earlier.get(key) == document[key] for key in ("num_images", "data", "resolution", "seed"))
    return earlier["autoencoders"] if same else {}


def report(results: dict[str, dict]) -> Iterator[str]:
    """A line per tokenizer."""
    for name, result in results.items():
        latents, positions, noise = result["latents"], result["positions"], result["psnr_under_noise"]
        yield (
            f"{name:28} variance {latents['variance_min']:.3g} to {latents['variance_max']:.3g}, "
            f"|correlation| {latents['mean_abs_correlation']:.3f}, rank {latents['effective_rank']:.1f} of "
            f"{len(latents['channel_variance'])}, neighbors {positions['lag_1_autocorrelation']:.2f}, "
            f"used {result['codebook']['utilization']:.1%}, PSNR at noise 0 / 0.1 / 0.5: "
            + " / ".join(
                f"{noise[key]['snapped']:.1f} ({noise[key]['free']:.1f} free, {noise[key].get('soft', math.nan):.1f} soft)"
                for key in ("0", "0.1", "0.5")
            )
        )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="shipped names, folders or Hub ids (default: all that ship)")
    parser.add_argument("--photos", required=True, help="folder of photos, or data set on the Hub")
    parser.add_argument("--every", type=int, default=1, help="use every n-th in name order (default: 1)")
    parser.add_argument("--resolution", type=int, default=256, help="side of the photos in pixels (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    parser.add_argument("--threads", type=int, help="threads (default: torch's)")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    parser.add_argument("--plot", type=Path, help="picture")
    args = parser.parse_args(arguments)
    for name in ("every", "resolution", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.threads:
        torch.set_num_threads(args.threads)
    results = {}
    try:
        photos = load_photos(args.photos, args.every, args.resolution)
        for model in args.models or pqdiff.BUNDLED:
            name = Path(model).name
            results[name] = measure(load_tokenizer(model), photos, seed=args.seed)
            print(next(report({name: results[name]})), flush=True)
    except ValueError as error:
        sys.exit(f"latent_stats: {error}")
    if args.output:
        document = {
            "machine": describe_machine(),
            "num_images": len(photos),
            "data": f"every {args.every}. of {Path(args.photos).name}" if args.every > 1 else Path(args.photos).name,
            "resolution": args.resolution,
            "seed": args.seed,
        }
        results = document["autoencoders"] = {**earlier_results(args.output, document), **results}
        args.output.write_text(json.dumps(document, indent=1) + "\n")
    if args.plot:
        plot(results, args.plot)


if __name__ == "__main__":
    main()
