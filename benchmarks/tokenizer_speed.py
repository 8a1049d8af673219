"""Seconds that every shipped tokenizer takes for a photo of 512 px: encode and decode, on a CPU.

    python -m benchmarks.tokenizer_speed --output benchmarks/results/tokenizer_speed.json

The photo is noise smoothed to have detail at every scale: unlike a flat picture it spares no tokenizer any work.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F

import pqdiff
from benchmarks.machine import describe_machine
from benchmarks.timing import interleaved_times, summary
from pqdiff.models.loading import load_tokenizer


def photo(side: int, seed: int = 0) -> torch.Tensor:
    """`(1, 3, side, side)` in [-1, 1]: octaves of noise, each half as strong as the next coarser one."""
    generator = torch.Generator().manual_seed(seed)
    image, octave = torch.zeros(1, 3, side, side), 4
    while octave <= side:
        noise = torch.randn(1, 3, octave, octave, generator=generator) * 2 / octave
        image += F.interpolate(noise, side, mode="bilinear", align_corners=False)
        octave *= 2
    return image.clamp_(-1, 1)


@torch.no_grad()
def measure(names: list[str], side: int, rounds: int) -> dict[str, dict]:
    """Milliseconds of encoding and of decoding, by tokenizer."""
    images, models = photo(side), {name: load_tokenizer(name).eval() for name in names}
    latents = {name: model.encode(images).latents for name, model in models.items()}
    calls = {("encode", name): lambda m=model: m.encode(images) for name, model in models.items()}
    calls |= {("decode", name): lambda n=name, m=model: m.decode(latents[n]) for name, model in models.items()}
    times = interleaved_times(calls, rounds)
    together = {
        ("both", name): [a + b for a, b in zip(times["encode", name], times["decode", name], strict=True)]
        for name in names
    }
    milliseconds = summary({**times, **together}, digits=1)
    return {name: {part: milliseconds[part, name] for part in ("encode", "decode", "both")} for name in names}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="shipped names, folders or Hub ids (default: all that ship)")
    parser.add_argument("--side", type=int, default=512, help="of the photo in pixels (default: 512)")
    parser.add_argument("--threads", type=int, default=1, help="default: 1")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    for name in ("threads", "rounds"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    torch.set_num_threads(args.threads)
    results = measure(args.models or list(pqdiff.BUNDLED), args.side, args.rounds)
    for name, milliseconds in results.items():
        parts = ", ".join(f"{part} {times['median']:.0f}" for part, times in milliseconds.items())
        print(f"{name:34} {parts} ms")
    if args.output:
        document = {
            "machine": describe_machine(),
            "side": args.side,
            "threads": args.threads,
            "rounds": args.rounds,
            "milliseconds": results,
        }
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
