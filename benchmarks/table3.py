"""Table 3 of the paper: Stable Diffusion 2.1 against the three variants on product-quantized latents, true sizes.

On a CPU, every FLOP is counted and single calls are timed in bf16, taking turns; the speed of a sample is their sum. On a
busy machine, one thread and its processor time leave the others out. The two variables keep glibc from returning every
large tensor to the kernel, which costs a decoder a third of its time; a GPU's allocator keeps them anyway:

    export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=34359738368
    python -m benchmarks.table3 --device cpu --threads 1 --clock processor --output benchmarks/results/table3.json

On a GPU, whole samples are timed in bf16 with fused attention, eager and compiled, one row after the other:

    python -m benchmarks.table3 --device cuda --output benchmarks/results/table3.json

Each fills its own section of the file. A sample is one picture in 50 steps with guidance, so the UNet's batch is two.
Weights are random: speed and memory depend on shapes alone. The paper's numbers are an A100's, to be compared as ratios.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn.attention import sdpa_kernel

from benchmarks.flops import flops_of
from benchmarks.machine import describe_machine
from benchmarks.memory import peak_tensor_bytes
from benchmarks.sampling import FUSED_ATTENTION, Components, flash_attention_works, free_memory, measure_row
from benchmarks.sd21 import BASE, FULL, ROWS, TINY, Size, count_parameters, weight_bytes

# Zavadski, Tatsch, Rother, table 3: an A100, 50 steps, one picture.
PAPER = {
    "sd21-768": {"samples_per_second": 0.116, "gigabytes": 14.9},
    "hr-1536": {"samples_per_second": 0.112, "gigabytes": 14.9},
    "precise-768": {"samples_per_second": 0.116, "gigabytes": 14.8},
    "quick-768": {"samples_per_second": 0.465, "gigabytes": 7.7},
}
TARGETS = {"quick-768": 4.3, "hr-1536": 0.97, "precise-768": 0.99}
# Processor time leaves out waiting for other programs; it means something with one thread, as threads wait for each other.
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
GPU_COMMAND = "python -m benchmarks.table3 --device cuda --output benchmarks/results/table3.json"


def ratios(per_second: dict[str, float]) -> dict[str, float]:
    """Speed of every variant over that of SD2.1."""
    return {name: round(value / per_second[BASE], 3) for name, value in per_second.items() if name != BASE}


@torch.no_grad()
def count_flops(size: Size, steps: int) -> dict[str, dict | float]:
    """Floating-point operations of every row by part, without computing anything."""
    rows = {}
    for name, row in ROWS.items():
        components = Components.build(row, size, torch.bfloat16, "meta")
        latents, text = components.noise(), components.encode_text()
        timestep = torch.zeros((), dtype=torch.int64, device="meta")
        calls = {
            "text_encoder": components.encode_text,
            "unet_call": lambda c=components, z=latents, t=text, s=timestep: c.predict(z, s, t),
            "decoder": lambda c=components, z=latents: c.decode(z),
        }
        flops = {part: flops_of(call) for part, call in calls.items()}
        flops["sample"] = flops["text_encoder"] + steps * flops["unet_call"] + flops["decoder"]
        rows[name] = {"unet_parameters": count_parameters(components.unet), **flops}
    return {"rows": rows, "ratios": ratios({name: 1 / row["sample"] for name, row in rows.items()})}


def row_parts(name: str) -> dict[str, tuple]:
    """By part of a sample, what its time depends on: rows with equal entries share one measurement."""
    row = ROWS[name]
    return {
        "text_encoder": ("text_encoder",),
        "unet_call": ("unet", row.latent_channels, row.side),
        "decoder": ("decoder", row.preset, row.side),
    }


class UnetCall:
    """One guided UNet call, which remembers how long conv_in and conv_out took, the only layers that rows differ in."""

    def __init__(self, components: Components, clock: Callable[[], float]):
        self.components, self.clock = components, clock
        self.latents, self.timestep, self.text = components.noise(), torch.tensor(500), components.encode_text()
        self.projection_seconds = []  # of every call

    def __call__(self) -> None:
        clock, starts, seconds, hooks = self.clock, [], [], []
        for layer in (self.components.unet.conv_in, self.components.unet.conv_out):
            hooks.append(layer.register_forward_pre_hook(lambda *_: starts.append(clock())))
            hooks.append(layer.register_forward_hook(lambda *_: seconds.append(clock() - starts.pop())))
        self.components.predict(self.latents, self.timestep, self.text)
        for hook in hooks:
            hook.remove()
        self.projection_seconds.append(sum(seconds))


def build_calls(rows: dict[str, Components], clock: Callable[[], float]) -> dict[tuple, Callable[[], object]]:
    """Every distinct call, with its input ready."""
    calls = {}
    for name, c in rows.items():
        parts, latents = row_parts(name), c.noise()
        calls[parts["text_encoder"]] = c.encode_text
        calls[parts["unet_call"]] = UnetCall(c, clock)
        calls[parts["decoder"]] = lambda c=c, z=latents: c.decode(z)
    return calls


def call_seconds(calls: dict[tuple, Callable[[], object]], times: dict[tuple, list[float]]) -> dict[tuple, float]:
    """Median seconds of every call; for UNets, of conv_in and conv_out plus of what lies between.

    Between them the networks and shapes are the same for all rows whose latents have the same side, so all their calls
    are one population: the noise of a busy machine would otherwise hide a difference below a hundredth.
    """
    seconds, between, projections = {}, {}, {}
    for key, values in times.items():
        if key[0] != "unet":
            seconds[key] = statistics.median(values)
            continue
        projections[key] = calls[key].projection_seconds[-len(values) :]  # without what came before the timed calls
        inner = [value - projection for value, projection in zip(values, projections[key], strict=True)]
        between.setdefault(key[-1], []).extend(inner)
    for key, values in projections.items():
        seconds[key] = statistics.median(between[key[-1]]) + statistics.median(values)
    return seconds


def interleaved_times(
    calls: dict[tuple, Callable[[], object]], rounds: int, clock: Callable[[], float]
) -> dict[tuple, list[float]]:
    """Seconds of each call, taking turns, in an order that alternates: a slow drift of the machine hits all alike."""
    times = {key: [] for key in calls}
    for i in range(rounds):
        for key in list(calls)[:: 1 if i % 2 == 0 else -1]:
            start = clock()
            calls[key]()
            times[key].append(clock() - start)
            print(f"round {i + 1} of {rounds} {' '.join(map(str, key)):32} {times[key][-1]:8.2f} s", flush=True)
    return times


@torch.no_grad()
def measure_cpu(size: Size, steps: int, rounds: int, decoder_rounds: int, clock: str) -> dict:
    """Seconds of single calls in bf16, what a sample of every row takes by their sum, and the memory it needs.

    Memory is counted tensor by tensor: the weights of all networks plus the most that any one call holds beside them.
    """
    shared = {}
    rows = {name: Components.build(row, size, torch.bfloat16, "cpu", shared) for name, row in ROWS.items()}
    load = os.getloadavg()[0]
    with sdpa_kernel(FUSED_ATTENTION):
        small = {name: replace(c, latent_shape=(*c.latent_shape[:2], 8, 8)) for name, c in rows.items()}
        for call in build_calls(small, time.perf_counter).values():  # one-time allocations
            call()
        calls = build_calls(rows, CLOCKS[clock])
        peaks = {key: peak_tensor_bytes(call) for key, call in calls.items()}  # also warms up
        decoders = {key: call for key, call in calls.items() if key[0] == "decoder"}
        times = interleaved_times(
            {key: call for key, call in calls.items() if key not in decoders}, rounds, CLOCKS[clock]
        )
        times |= interleaved_times(decoders, decoder_rounds, CLOCKS[clock])
    medians, result = call_seconds(calls, times), {}
    for name, c in rows.items():
        seconds = {part: medians[key] for part, key in row_parts(name).items()}
        seconds["sample"] = seconds["text_encoder"] + steps * seconds["unet_call"] + seconds["decoder"]
        weights = sum(weight_bytes(network) for network in (c.text_encoder, c.unet, c.autoencoder))
        activations = {part: peaks[key] for part, key in row_parts(name).items()}
        unet = row_parts(name)["unet_call"]
        result[name] = {
            "samples_per_second": round(1 / seconds["sample"], 6),
            "seconds": {part: round(value, 3) for part, value in seconds.items()},
            "conv_in_and_conv_out_seconds": round(statistics.median(calls[unet].projection_seconds), 3),
            "unet_call_seconds_range": [round(min(times[unet]), 3), round(max(times[unet]), 3)],
            "weight_gigabytes": round(weights / 1e9, 2),
            "activation_gigabytes": {part: round(value / 1e9, 2) for part, value in activations.items()},
            "peak_gigabytes": round((weights + max(activations.values())) / 1e9, 2),
        }
    return {
        "machine": describe_machine(),
        "precision": "bf16, fused attention, channels-last, eager",
        "threads": torch.get_num_threads(),
        "malloc": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MALLOC_")},
        "load_average_before_and_after": [round(load, 2), round(os.getloadavg()[0], 2)],
        "clock": clock,
        "rounds": rounds,
        "decoder_rounds": decoder_rounds,
        "steps": steps,
        "rows": result,
        "ratios": ratios({name: row["samples_per_second"] for name, row in result.items()}),
    }


def measure_device(size: Size, device: str, steps: int, samples: int) -> dict:
    """Whole samples in bf16, eager and compiled."""
    modes = {}
    for mode in ("eager", "compiled"):
        rows = {}
        for name, row in ROWS.items():
            free_memory(device)
            rows[name] = measure_row(row, size, torch.bfloat16, device, steps, samples, compiled=mode == "compiled")
            print(f"{mode:9} {name:12} {rows[name]['samples_per_second']:8.3f} samples/s", flush=True)
        modes[mode] = {
            "rows": rows,
            "ratios": ratios({name: row["samples_per_second"] for name, row in rows.items()}),
        }
    return {
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else device,
        "precision": "bf16, fused attention, channels-last",
        "flash_attention": flash_attention_works(device, torch.bfloat16),
        "steps": steps,
        "samples": samples,
        **modes,
    }


def load_document(path: Path | None, networks: str) -> dict:
    """The results so far, or none: sections that this run does not measure stay as they are.

    Raises:
        ValueError: if the file is about networks of another size.
    """
    if path is None or not path.exists():
        return {"networks": networks, "cpu": None, "gpu": None}
    document = json.loads(path.read_text())
    if document.get("networks") != networks:
        raise ValueError(
            f"output ({path}) holds results of networks {document.get('networks')!r}, not {networks!r}: choose another"
        )
    return document


def print_table(document: dict) -> None:
    """One line per row, and the ratios beside what was aimed at and what the paper has."""
    cpu, missing = document["cpu"], float("nan")
    columns = (document["flops"]["ratios"], cpu["ratios"] if cpu else {}, TARGETS, document["paper"]["ratios"])
    print(f"{'':12} {'TFLOP':>8} {'CPU s':>8} {'GB':>6}   speed over SD2.1: by FLOPs, on this CPU, aim, paper")
    for name, flops in document["flops"]["rows"].items():
        seconds, memory = missing, missing
        if cpu:
            seconds, memory = cpu["rows"][name]["seconds"]["sample"], cpu["rows"][name]["peak_gigabytes"]
        shown = "  ".join(f"{column.get(name, missing):6.3f}" for column in columns if name != BASE)
        print(f"{name:12} {flops['sample'] / 1e12:8.2f} {seconds:8.1f} {memory:6.2f}   {shown}")


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--steps", type=int, default=50, help="denoising steps per sample (default: 50)")
    parser.add_argument("--samples", type=int, default=5, help="samples per row on a GPU (default: 5)")
    parser.add_argument("--rounds", type=int, default=3, help="UNet calls per row on a CPU (default: 3)")
    parser.add_argument("--decoder-rounds", type=int, default=2, help="decodings per row on a CPU (default: 2)")
    parser.add_argument("--threads", type=int, default=2, help="threads on a CPU (default: 2)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor, on a busy machine (default: wall)")
    parser.add_argument("--tiny", action="store_true", help="networks of toy size, to try the command")
    parser.add_argument("--output", type=Path, help="file for the results as JSON; its other sections are kept")
    args = parser.parse_args(arguments)
    for name in ("steps", "samples", "rounds", "decoder_rounds", "threads"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    if args.clock == "processor" and args.threads > 1:
        parser.error(f"--clock processor needs --threads 1, got {args.threads}: threads that wait count as busy")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse_arguments(arguments)
    size, networks = (TINY, "tiny") if args.tiny else (FULL, "full size, random weights")
    try:
        document = load_document(args.output, networks)
    except ValueError as error:
        sys.exit(f"table3: {error}")
    paper = ratios({name: row["samples_per_second"] for name, row in PAPER.items()})
    document["paper"] = {"device": "A100", "rows": PAPER, "ratios": paper}
    document["targets"] = TARGETS
    document["gpu_command"] = GPU_COMMAND
    document["flops"] = {"steps": args.steps, **count_flops(size, args.steps)}
    if args.device.startswith("cuda"):
        document["gpu"] = measure_device(size, args.device, args.steps, args.samples)
    else:
        torch.set_num_threads(args.threads)
        document["cpu"] = measure_cpu(size, args.steps, args.rounds, args.decoder_rounds, args.clock)
    print_table(document)
    if args.output:
        args.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
