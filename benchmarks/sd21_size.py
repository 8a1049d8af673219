"""The UNet of Stable Diffusion 2.1 at its true size, widened to 128 channels, through a file and one step.

    python -m benchmarks.sd21_size --output benchmarks/results/sd21_size.json

Built with random weights in fp16, widened, counted, saved in shards, loaded by stock diffusers, compared bit for bit, and
run for one denoising step at the sizes of PQSD-Quick (48 x 48) and of PQSD-Precise and -HR (96 x 96), in bf16. Needs about
6 GB of memory and 2 GB of disk, in a temporary folder.
"""

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from benchmarks.machine import describe_machine
from benchmarks.sd21 import FULL, TINY, TOKENS, Size, build_scheduler, build_unet, check_unet, count_parameters
from pqdiff.adaptation.widen import widen_unet

BASE_CHANNELS, CHANNELS = 4, 128
SIDES = (48, 96)


class Timer:
    """Seconds of what it calls, by name."""

    def __init__(self):
        self.seconds = {}

    def __call__(self, name: str, function: Callable, *args, **kwargs):
        start = time.perf_counter()
        result = function(*args, **kwargs)
        self.seconds[name] = round(time.perf_counter() - start, 2)
        return result


def differing_tensors(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> list[str]:
    """Names that only one of two state dicts has, or under which dtype, shape or any bit differ."""
    names = first.keys() ^ second.keys()
    for name in first.keys() & second.keys():
        a, b = first[name], second[name]
        if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(_bits(a), _bits(b)):
            names.add(name)
    return sorted(names)


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)  # equal numbers may differ in sign of zero, NaN never equals itself


@torch.no_grad()
def one_step(unet: UNet2DConditionModel, side: int) -> torch.Tensor:
    """Latents `(1, C, side, side)` after the first of 50 guided steps from noise."""
    generator = torch.Generator().manual_seed(0)
    scheduler = build_scheduler()
    scheduler.set_timesteps(50)
    latents = torch.randn(1, unet.config.in_channels, side, side, generator=generator).to(unet.dtype)
    text = torch.randn(2, TOKENS, unet.config.cross_attention_dim, generator=generator).to(unet.dtype)
    timestep = scheduler.timesteps[0]
    without, with_prompt = unet(torch.cat([latents] * 2), timestep, text).sample.chunk(2)
    return scheduler.step(without + 7.5 * (with_prompt - without), timestep, latents).prev_sample


def measure(size: Size, folder: Path, max_shard_size: str) -> dict:
    """Everything the module's docstring says, with `folder` for the files.

    Raises:
        RuntimeError: if anything comes back different, not finite or of the wrong shape.
        ValueError: if the number of parameters is not SD2.1's.
    """
    timer = Timer()
    torch.manual_seed(0)
    unet = timer("build", build_unet, size, BASE_CHANNELS, torch.float16)
    before = count_parameters(unet)
    timer("widen", widen_unet, unet, CHANNELS, init="variance")
    if size is FULL:
        check_unet(unet)
    timer("save", unet.save_pretrained, folder, max_shard_size=max_shard_size)
    shards = sorted(folder.glob("*.safetensors"))
    loaded = timer("load", UNet2DConditionModel.from_pretrained, folder, torch_dtype=torch.float16)
    different = timer("compare", differing_tensors, unet.state_dict(), loaded.state_dict())
    if different:
        raise RuntimeError(f"{len(different)} tensors differ after loading, e.g. {different[0]}")
    if loaded.config.in_channels != CHANNELS or loaded.config.out_channels != CHANNELS:
        raise RuntimeError(
            f"the loaded config has {loaded.config.in_channels} and {loaded.config.out_channels} channels"
        )
    del unet, loaded
    loaded = timer("load_bf16", UNet2DConditionModel.from_pretrained, folder, torch_dtype=torch.bfloat16)
    for side in (side // size.side_divisor for side in SIDES):
        latents = timer(f"step_{side}x{side}", one_step, loaded, side)
        if latents.shape != (1, CHANNELS, side, side) or not latents.isfinite().all():
            raise RuntimeError(f"one step at {side} x {side} gave {tuple(latents.shape)}, or values not finite")
    return {
        "parameters": {str(BASE_CHANNELS): before, str(CHANNELS): count_parameters(loaded)},
        "saved": {
            "dtype": "fp16",
            "max_shard_size": max_shard_size,
            "shards": len(shards),
            "bytes": sum(shard.stat().st_size for shard in shards),
            "loaded_bit_for_bit": not different,
        },
        "step": {"precision": "bf16", "batch": 2, "finite": True},
        "seconds": timer.seconds,
        "peak_resident_gigabytes": round(_peak_resident_bytes() / 1e9, 2),
    }


def _peak_resident_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max-shard-size", default="500MB", help="of a file of weights (default: 500MB)")
    parser.add_argument("--threads", type=int, default=2, help="threads (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="a UNet of toy size, to try the command")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        results = measure(TINY if args.tiny else FULL, Path(folder), args.max_shard_size)
    for name, seconds in results["seconds"].items():
        print(f"{name:12} {seconds:8.2f} s")
    print(f"{results['parameters'][str(CHANNELS)]:,} parameters, {results['saved']['bytes'] / 1e9:.2f} GB in "
          f"{results['saved']['shards']} shards, peak {results['peak_resident_gigabytes']} GB")  # fmt: skip
    if args.output:
        document = {
            "machine": describe_machine(),
            "networks": "tiny" if args.tiny else "full size, random weights",
            "threads": args.threads,
            "load_average_before": round(load, 2),
            "results": results,
        }
        args.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
