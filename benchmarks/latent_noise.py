"""What noise on the latents does to the picture, as a diffusion model's errors will.

    python -m benchmarks.latent_noise --photos PHOTOS/imagenet --every 10 --output benchmarks/results/latent_noise.json

Gaussian noise is added to standardized latents (unit variance on average), which are then decoded with and without snapping
to the nearest codewords. Protocol of the photos: shorter side to 256 px by Lanczos, center crop, 8-bit output.
"""

import argparse
import json
from pathlib import Path

import torch

import pqdiff
from benchmarks.machine import describe_machine
from pqdiff.data.images import iterate_images, normalize, resize_and_crop, to_pixels, to_tensor
from pqdiff.metrics import DatasetPSNR

NOISE = (0.0, 0.01, 0.03, 0.1, 0.3)


@torch.no_grad()
def psnr_under_noise(autoencoder, photos: torch.Tensor) -> dict[str, dict[str, float]]:
    """Data set PSNR in dB by standard deviation of the noise, snapped and not."""
    latents = autoencoder.encode(normalize(photos)).latents
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(latents.shape, generator=generator)
    results = {}
    for std in NOISE:
        results[str(std)] = {}
        for label, quantize in (("snapped", True), ("not snapped", False)):
            psnr = DatasetPSNR()
            psnr.update(to_pixels(autoencoder.decode(latents + std * noise, quantize=quantize).sample), photos)
            results[str(std)][label] = round(float(psnr.compute()), 2)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photos")
    parser.add_argument("--every", type=int, default=1, help="use every n-th in name order (default: 1)")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args()
    images = [image for i, (_, image) in enumerate(iterate_images(args.photos)) if i % args.every == 0]
    photos = torch.stack([to_tensor(resize_and_crop(image, 256)) for image in images])
    results = {}
    for name in pqdiff.BUNDLED:
        results[name] = psnr_under_noise(pqdiff.AutoencoderPQ.from_pretrained(pqdiff.bundled(name)).eval(), photos)
        for std, values in results[name].items():
            print(f"{name:26} noise {std:5} snapped {values['snapped']:6.2f} dB   not {values['not snapped']:6.2f} dB")
    if args.output:
        document = {"machine": describe_machine(), "num_images": len(photos), "psnr_dataset": results}
        args.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
