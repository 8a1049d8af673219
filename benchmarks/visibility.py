"""How much SSIMULACRA2 falls by errors of each color and frequency: where the slopes of `fitting/visibility.py` come from.

    python training/fit_tokenizers.py --photos PHOTOS/imagenet --also PHOTOS/bsds --learned runs/learned
    python -m benchmarks.visibility --photos runs/learned/photos/train --output benchmarks/results/visibility.json

For a reconstruction y of x and the loss L = (100 - SSIMULACRA2) / 100, the slope of a coefficient k of 32 px blocks (DCT
of Y, Cb and Cr) is sum(dL/dy_k (y_k - x_k)) / sum((y_k - x_k)^2): what a squared error there costs. The photos are fitting
photos, not those of record.
"""

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from benchmarks.machine import describe_machine
from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import bundled
from pqdiff.data.captions.captioned import iterate_images
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.fitting.visibility import FREQUENCIES, color_axes, cosines
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss

TOKENIZERS = ("pqgan-f16-d128-s64-k128-adaptive", "pqgan-f32-d256-s64-k256-adaptive")
BLOCK, RESOLUTION = 32, 256
COLORS = ("Y", "Cb", "Cr")


def coefficients(pixels: torch.Tensor, colors: torch.Tensor) -> torch.Tensor:
    """Images `(1, 3, H, W)` as `(3, blocks, BLOCK, BLOCK)` of frequencies, after a matrix of colors (3, 3)."""
    mixed = torch.einsum("ij,jhw->ihw", colors, pixels[0].double())
    blocks = mixed.unflatten(2, (-1, BLOCK)).unflatten(1, (-1, BLOCK)).transpose(2, 3).flatten(1, 2)
    return cosines(BLOCK) @ blocks @ cosines(BLOCK).T


def slopes(model: AutoencoderPQ, images) -> list[list[float]]:
    """Slopes of the colors at FREQUENCIES: means over the coefficients that are nearest in log frequency."""
    loss, axes = SSIMULACRA2Loss(), color_axes()
    products = squares = torch.zeros(3, BLOCK, BLOCK, dtype=torch.float64)
    for image in images:
        pixels = to_tensor(resize_and_crop(image, RESOLUTION))[None] / 127.5 - 1
        with torch.no_grad():
            output = model(pixels).sample.clamp(-1, 1)
        output.requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(pixels, output).sum(), output)
        error = coefficients((output - pixels).detach(), axes)
        products = products + (error * coefficients(gradient, torch.linalg.inv(axes).T)).sum(dim=1)
        squares = squares + error.square().sum(dim=1)
    rows = torch.arange(BLOCK) / (2 * BLOCK)  # cycles per pixel
    radius = (rows[:, None].square() + rows.square()).sqrt().clamp(min=FREQUENCIES[0])
    nearest = (radius.log()[..., None] - torch.tensor(FREQUENCIES).log()).abs().argmin(dim=-1)
    bands = [nearest == band for band in range(len(FREQUENCIES))]
    return [[float(products[color][band].sum() / squares[color][band].sum()) for band in bands] for color in range(3)]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos that tokenizers are fitted to")
    parser.add_argument("--every", type=int, default=24, help="take every n-th photo (default: 24)")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    images = [image for number, image in enumerate(iterate_images(args.photos)) if number % args.every == 0]
    results = {}
    for name in TOKENIZERS:
        model = AutoencoderPQ.from_pretrained(bundled(name)).eval().requires_grad_(False)
        measured = slopes(model, tqdm(images, desc=name))
        results[name] = {
            color: [round(s / measured[0][0], 5) for s in row] for color, row in zip(COLORS, measured, strict=True)
        }
        for color, row in results[name].items():
            print(f"{name} {color:2}", *(f"{slope:.4f}" for slope in row))
    if args.output:
        document = {
            "machine": describe_machine(),
            "num_images": len(images),
            "frequencies": FREQUENCIES,
            "slopes": results,
        }
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
