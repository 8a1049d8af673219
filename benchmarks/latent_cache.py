"""What caching saves: bytes per image, and milliseconds until a batch is latents, for three ways to feed a trainer.

    python -m benchmarks.latent_cache --output benchmarks/results/latent_cache.json

Images are generated, with the spectrum of photos (amplitude 1 / frequency), and stored as JPEG of quality 95. Each is read
at random from a warm file cache, in batches, on one thread: as packed tokens that are looked up, as fp16 latents, and as
JPEG that is decoded, cropped and encoded. The three take turns; medians of processor time are reported, which a busy
machine stretches less than the clock.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks.machine import describe_machine
from pqdiff.checkpoints import bundled
from pqdiff.data.cache.reader import LatentCache
from pqdiff.data.captions.captioned import open_captioned
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import normalize, to_tensor
from pqdiff.models import AutoencoderPQ
from training import cache_latents

TOKENIZERS = ("pqgan-f8-d128-s64-k512", "pqgan-f16-d128-s64-k128")
RESOLUTION = 256


def write_photos(folder: Path, count: int, seed: int = 0) -> None:
    """JPEGs of noise whose amplitude falls with frequency as that of photos does."""
    rng = np.random.default_rng(seed)
    side = RESOLUTION * 5 // 4
    frequencies = np.hypot(*np.meshgrid(np.fft.fftfreq(side), np.fft.fftfreq(side)))
    amplitude = 1 / np.maximum(frequencies, 1 / side)
    for number in range(count):
        gray, color = rng.standard_normal((1, side, side)), rng.standard_normal((3, side, side))
        pixels = np.fft.ifft2(np.fft.fft2(gray + 0.3 * color) * amplitude).real
        pixels = (pixels - pixels.mean()) / pixels.std() * 55 + 120
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        image.save(folder / f"{number:05d}.jpg", quality=95)


def measure(name: str, photos: Path, work: Path, batch_size: int, rounds: int) -> dict:
    """Bytes and milliseconds per image of one tokenizer, for each of the three ways."""
    autoencoder = AutoencoderPQ.from_pretrained(bundled(name)).eval()
    caches, seconds = {}, {}
    for kind in ("indices", "latents"):
        options = ["--dataset", photos, "--autoencoder", name, "--kind", kind, "--output", work / f"{name}-{kind}"]
        options += ["--resolution", RESOLUTION, "--num_workers", 0, "--device", "cpu"]
        start = time.process_time()
        cache_latents.main([*map(str, options)])
        seconds[kind] = time.process_time() - start
        caches[kind] = LatentCache(work / f"{name}-{kind}")
    images = open_captioned(photos)

    def from_indices(wanted):
        return autoencoder.latents_from_indices(caches["indices"].get_batch(wanted)["indices"])

    def from_latents(wanted):
        return caches["latents"].get_batch(wanted)["latents"]

    def from_images(wanted):
        pixels = [to_tensor(resize_and_crop(images[i]["image"], RESOLUTION)) for i in wanted]
        return autoencoder.encode(normalize(torch.stack(pixels))).latents

    ways = {"indices": from_indices, "latents": from_latents, "images": from_images}
    times = {way: [] for way in ways}
    rng = np.random.default_rng(0)
    with torch.no_grad():
        for i in range(rounds + 1):
            wanted = rng.permutation(len(images))[:batch_size].tolist()
            results = {}
            for way, read in ways.items():
                start = time.process_time()
                results[way] = read(wanted)
                if i:  # the first round warms up
                    times[way].append((time.process_time() - start) / batch_size)
            check(results)
    count = len(images)
    sizes = {kind: sum(path.stat().st_size for path in cache.folder.iterdir()) for kind, cache in caches.items()}
    sizes["images"] = sum(path.stat().st_size for path in photos.iterdir())
    medians = {way: statistics.median(values) for way, values in times.items()}
    return {
        "bytes_per_image": {way: round(sizes[way] / count) for way in ways},
        "milliseconds_per_image": {way: round(1e3 * medians[way], 3) for way in ways},
        "latents_over_indices_bytes": round(sizes["latents"] / sizes["indices"], 2),
        "images_over_indices_milliseconds": round(medians["images"] / medians["indices"], 1),
        "caching_milliseconds_per_image": {kind: round(1e3 * seconds[kind] / count, 1) for kind in caches},
    }


def check(latents: dict[str, torch.Tensor]) -> None:
    """All three ways must lead to the same latents: fp16 rounds, and a tie may fall either way in another batch.

    Raises:
        ValueError: if more than one in a thousand values differs.
    """
    for way, values in latents.items():
        scale = latents["images"].abs().clamp(min=1)
        differing = ((values - latents["images"]).abs() > 2e-3 * scale).float().mean().item()
        if differing > 1e-3:
            raise ValueError(f"{way}: {100 * differing:.2f}% of the latents differ from those of the images")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=128, help="images to generate (default: 128)")
    parser.add_argument("--batch_size", type=int, default=16, help="images read at once (default: 16)")
    parser.add_argument("--rounds", type=int, default=11, help="interleaved batches per way (default: 11)")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    results = {}
    with tempfile.TemporaryDirectory() as folder:
        photos = Path(folder) / "photos"
        photos.mkdir()
        write_photos(photos, args.photos)
        for name in TOKENIZERS:
            results[name] = measure(name, photos, Path(folder), args.batch_size, args.rounds)
            for way, size in results[name]["bytes_per_image"].items():
                print(f"{name:26} {way:8} {size / 1e3:8.1f} kB   "
                      f"{results[name]['milliseconds_per_image'][way]:8.2f} ms per image")  # fmt: skip
    if args.output:
        settings = {"resolution": RESOLUTION, "images": args.photos, "batch_size": args.batch_size}
        settings |= {"rounds": args.rounds, "threads": 1}
        document = {"machine": describe_machine(), **settings, "results": results}
        args.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
