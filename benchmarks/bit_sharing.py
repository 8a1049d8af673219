"""What it would give if neighboring patches shared their bits: each of ours has the same number of tokens.

    python -m benchmarks.bit_sharing --photos PHOTOS/imagenet --output benchmarks/results/bit_sharing.json

Three shipped tokenizers give the squared error of every 16 px patch of the 72 photos of record at 0.5, 1.75 and 3.5 bits
per pixel; between and beyond these, its log is taken to be linear in the rate. For squares of one to all patches of an
image, rates are then chosen so that the mean rate of each square stays the same and the sum of its errors is least. No
tokenizer does that: it estimates what could be gained by one that does, from patches that are coded as ours are.
"""

import argparse
import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from tqdm import tqdm

from benchmarks.machine import describe_machine
from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import bundled
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.metrics.reconstructors import AutoencoderReconstructor
from training.fit_tokenizers import RESOLUTION, photos

TOKENIZERS = (
    "pqgan-f32-d256-s64-k256-adaptive",
    "pqgan-f16-d128-s64-k128-adaptive",
    "pqgan-f16-d256-s128-k128-adaptive",
)
PATCH = 16  # pixels
SQUARES = (1, 2, 4, 8, 16)  # patches a side
STEPS = 97  # rates that are tried, from a fifth to three times the mean
LEAST = 0.05  # squared error of 8-bit values: rounding alone has 0.08


def patch_errors(images, tokenizers) -> torch.Tensor:
    """Mean squared errors of 8-bit values `(tokenizers, images, h, w)` of all patches."""
    errors = []
    for image in tqdm(images, unit=" images"):
        pixels = to_tensor(resize_and_crop(image, RESOLUTION))[None]
        results = torch.cat([tokenizer(pixels).pixels for tokenizer in tokenizers])
        errors.append(F.avg_pool2d((results.double() - pixels.double()).square().mean(1, keepdim=True), PATCH)[:, 0])
    return torch.stack(errors, dim=1)


def errors_at(rates: torch.Tensor, known_rates: list[float], known: torch.Tensor) -> torch.Tensor:
    """Errors `(R, ...)` at rates `(R,)` from errors `(T, ...)` at `known_rates`, whose logs are joined by lines."""
    logs = known.clamp(min=LEAST).log()
    result = []
    for rate in rates.tolist():
        i = min(max(sum(rate > known for known in known_rates) - 1, 0), len(known_rates) - 2)
        part = (rate - known_rates[i]) / (known_rates[i + 1] - known_rates[i])
        result.append(logs[i] + part * (logs[i + 1] - logs[i]).clamp(max=0))  # more bits do no harm
    return torch.stack(result).exp()


def allocate(errors: torch.Tensor, rates: torch.Tensor, mean_rate: float) -> torch.Tensor:
    """Errors `(squares, patches)` at the rates that make the sum of each square least, with this mean rate or below it.

    Args:
        errors: `(R, squares, patches)` at `rates`.
        rates: `(R,)`.
        mean_rate: of the patches of a square.
    """
    low, high = (torch.full(errors.shape[1:2], value, dtype=torch.float64) for value in (1e-6, 1e7))  # price of a bit
    for _ in range(60):
        price = (low * high).sqrt()
        chosen = (errors + price[:, None] * rates[:, None, None]).argmin(dim=0)
        fits = rates[chosen].mean(dim=1) <= mean_rate
        low, high = torch.where(fits, low, price), torch.where(fits, price, high)
    chosen = (errors + high[:, None] * rates[:, None, None]).argmin(dim=0)
    return errors.gather(0, chosen[None])[0]


def squares_of(errors: torch.Tensor, side: int) -> torch.Tensor:
    """`(R, images, h, w)` as `(R, squares, side^2)`."""
    parts = errors.unflatten(3, (-1, side)).unflatten(2, (-1, side)).transpose(3, 4)
    return parts.flatten(1, 3).flatten(2)


def summary(errors: torch.Tensor) -> dict:
    """PSNR, and how unevenly the error lies."""
    errors = errors.flatten().sort().values
    worst = errors[-len(errors) // 10 :].sum() / errors.sum()
    return {
        "psnr": round(10 * math.log10(255**2 / errors.mean().item()), 3),
        "median_error": round(errors[len(errors) // 2].item(), 2),
        "error_of_99_percent": round(errors[len(errors) * 99 // 100].item(), 2),
        "share_of_worst_tenth": round(worst.item(), 4),
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder; every tenth photo is measured on")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    models = [AutoencoderPQ.from_pretrained(bundled(name)).eval() for name in TOKENIZERS]
    known_rates = [model.bits_per_pixel for model in models]
    known = patch_errors(photos(args.photos, held_out=True), [AutoencoderReconstructor(model) for model in models])
    results = []
    for number, mean_rate in enumerate(known_rates[:2]):
        rates = torch.linspace(0.2, 3, STEPS, dtype=torch.float64) * mean_rate
        results.append({"bits_per_pixel": mean_rate, "square": 1, "pixels": PATCH, **summary(known[number])})
        for side in SQUARES[1:]:
            errors = allocate(squares_of(errors_at(rates, known_rates, known), side), rates, mean_rate)
            results.append({"bits_per_pixel": mean_rate, "square": side, "pixels": side * PATCH, **summary(errors)})
    for row in results:
        print(row)
    if args.output:
        document = {"machine": describe_machine(), "tokenizers": list(TOKENIZERS), "rows": results}
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
