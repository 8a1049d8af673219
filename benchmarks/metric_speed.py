"""Milliseconds per image of every metric of perception on one thread, and how much SSIMULACRA2 gains over its package.

    python -m benchmarks.metric_speed --output benchmarks/results/metric_speed.json

Images are generated, with the spectrum of photos, and compressed as JPEG of quality 50. All metrics take turns; medians and
minima of processor time are reported, which a busy machine stretches less than the clock. For batches on all cores, which
the package does not use, it is the clock that counts.
"""

import argparse
import io
import json
import os
import statistics
from pathlib import Path

import torch
import torchmetrics
from PIL import Image

from benchmarks.latent_cache import write_photos
from benchmarks.machine import describe_machine
from benchmarks.timing import interleaved_times, summary
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.metrics import MDSI, MSSSIM, SSIMULACRA2, VIF, HaarPSI, ImagePSNR, ImageSSIM

BATCH = 4
METRICS = (ImagePSNR, ImageSSIM, MSSSIM, HaarPSI, MDSI, SSIMULACRA2, VIF)


def measure(image: Image.Image, rounds: int) -> dict:
    """Times of all metrics on an image and its JPEG, and the numbers of SSIMULACRA2 and of its package."""
    import ssimulacra2  # of the extra `dev`

    file = io.BytesIO()
    image.save(file, "JPEG", quality=50)
    pair = [Image.open(file).convert("RGB"), image]
    files = []
    for entry in pair:
        buffer = io.BytesIO()
        entry.save(buffer, "PPM")  # nothing to decode: only the metric is timed
        files.append(buffer.getvalue())
    preds, target = (to_tensor(entry)[None] for entry in pair)
    calls = {metric.__name__: lambda metric=metric: metric.values(preds, target) for metric in METRICS}
    calls["ssimulacra2 package"] = lambda: ssimulacra2.compute_ssimulacra2(*map(io.BytesIO, reversed(files)))
    with torch.no_grad():
        times = interleaved_times(calls, rounds, clock="processor")
        batched = over_package_in_batches(preds, target, calls["ssimulacra2 package"], rounds)
    pairs = zip(times["ssimulacra2 package"], times["SSIMULACRA2"], strict=True)
    return {
        "milliseconds": summary(times, digits=2),
        "all_of_ours_milliseconds": round(1e3 * sum(statistics.median(times[m.__name__]) for m in METRICS), 1),
        "package_over_ours": round(statistics.median(slow / fast for slow, fast in pairs), 2),
        "package_over_ours_in_batches_on_all_cores": batched,
        "ours": round(float(calls["SSIMULACRA2"]()), 4),
        "package": round(float(calls["ssimulacra2 package"]()), 4),
    }


def over_package_in_batches(preds, target, package, rounds: int) -> float:
    """Median of the package's seconds for an image over those of ours in a batch, on as many threads as there are cores."""
    batch = [images.expand(BATCH, -1, -1, -1) for images in (preds, target)]
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)
    times = interleaved_times({"ours": lambda: SSIMULACRA2.values(*batch), "package": package}, rounds)
    torch.set_num_threads(threads)
    pairs = zip(times["package"], times["ours"], strict=True)
    return round(statistics.median(BATCH * slow / fast for slow, fast in pairs), 2)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[256, 768], help="of the images (default: 256 768)")
    parser.add_argument("--rounds", type=int, default=15, help="interleaved calls of each metric (default: 15)")
    parser.add_argument("--work", type=Path, default=Path("runs/metric_speed"), help="folder of the image")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    args.work.mkdir(parents=True, exist_ok=True)
    write_photos(args.work, 1)
    photo = Image.open(args.work / "00000.jpg").convert("RGB")
    document = {
        "machine": {**describe_machine(), "torchmetrics": torchmetrics.__version__},
        "results": {side: measure(resize_and_crop(photo, side), args.rounds) for side in args.sides},
    }
    text = json.dumps(document, indent=2) + "\n"
    print(text)
    if args.output:
        args.output.write_text(text)


if __name__ == "__main__":
    main()
