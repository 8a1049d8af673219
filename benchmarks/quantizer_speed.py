"""Speed and memory of `ProductQuantizer` against a loop over the subspaces.

    python -m benchmarks.quantizer_speed --output benchmarks/results/quantizer_speed.json

Both run interleaved in one process on one thread; only ratios of medians mean anything on a shared machine. Peak memory is
counted allocation by allocation, beside the outputs.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from benchmarks.machine import describe_machine
from benchmarks.memory import peak_tensor_bytes
from benchmarks.per_subspace_loop import PerSubspaceLoop
from pqdiff.quantizers import ProductQuantizer

# name: d, S, K, side of the latents
CONFIGS = {
    "f8-256": (128, 64, 512, 32),
    "f16-256": (128, 64, 128, 16),
    "f16-d256-256": (256, 128, 128, 16),
    "f32-256": (256, 64, 256, 8),
}
MEMORY_CONFIG = ("f8-768", (128, 64, 512, 96))


def build(config):
    torch.manual_seed(0)
    channels, subspaces, size, side = config
    ours = ProductQuantizer(channels, subspaces, size)
    loop = PerSubspaceLoop(ours.codebooks.detach())
    return {"loop": loop, "pqdiff": ours}, torch.randn(1, channels, side, side)


def search(quantizer, z):
    with torch.no_grad():
        quantizer(z)


def forward_backward(quantizer, z):
    z = z.requires_grad_()
    output = quantizer(z)
    (output[0].sum() + output[2]).backward()


def interleaved_medians(action, quantizers, z, rounds: int) -> dict[str, float]:
    """Median seconds of each quantizer, taking turns."""
    times = {name: [] for name in quantizers}
    for i in range(rounds + 1):
        for name, quantizer in quantizers.items():
            start = time.perf_counter()
            action(quantizer, z.clone())
            if i:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in times.items()}


def peak_megabytes(quantizer, z) -> float:
    """Most memory alive in one search beside its outputs, in MB (1e6 bytes)."""
    search(quantizer, z[..., :1, :1].contiguous())
    with torch.no_grad():
        outputs = sum(tensor.numel() * tensor.element_size() for tensor in quantizer(z))
    return (peak_tensor_bytes(lambda: search(quantizer, z)) - outputs) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=21, help="interleaved rounds per measurement (default: 21)")
    parser.add_argument("--output", type=Path, help="file for the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)

    results = {}
    for name, config in CONFIGS.items():
        quantizers, z = build(config)
        results[name] = {"config": dict(zip(("d", "S", "K", "side"), config, strict=True))}
        for action in (search, forward_backward):
            medians = interleaved_medians(action, quantizers, z, args.rounds)
            ratio = medians["loop"] / medians["pqdiff"]
            results[name][action.__name__] = {
                **{f"{k}_milliseconds": round(v * 1e3, 3) for k, v in medians.items()},
                "ratio": round(ratio, 2),
            }
            print(f"{name:14} {action.__name__:17} loop {medians['loop'] * 1e3:8.2f} ms   "
                  f"pqdiff {medians['pqdiff'] * 1e3:8.2f} ms   ratio {ratio:5.2f}")  # fmt: skip

    quantizers, z = build(MEMORY_CONFIG[1])
    memory = {name: round(peak_megabytes(quantizer, z), 2) for name, quantizer in quantizers.items()}
    memory["ratio"] = round(memory["loop"] / memory["pqdiff"], 1)
    print(f"{MEMORY_CONFIG[0]:14} peak extra memory loop {memory['loop']:8.2f} MB   pqdiff {memory['pqdiff']:8.2f} MB   "
          f"ratio {memory['ratio']:5.1f}")  # fmt: skip
    results[MEMORY_CONFIG[0]] = {"peak_extra_megabytes_beside_outputs": memory}
    if args.output:
        document = {"machine": describe_machine(), "threads": 1, "rounds": args.rounds, "results": results}
        args.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
