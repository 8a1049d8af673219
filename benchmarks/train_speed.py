"""A training step of the paper's F8 autoencoder with `ProductQuantizer` and with the loop over subspaces.

    python -m benchmarks.train_speed --output benchmarks/results/train_speed.json

A step: forward pass at 256 px, L1 and the quantizer's loss, backward pass, AdamW; no perceptual loss and no discriminator,
which know nothing of the quantizer. Both quantizers hold the same codewords, take turns, and share the networks' weights.
Peak memory counts what one step allocates beyond weights and the optimizer's state. `--device cuda` (bf16 autocast)
measures a GPU and keeps what the file says of the CPU, and the other way round. A step takes long on a CPU; `--network
small` is for a quick look.
"""

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.machine import describe_machine
from benchmarks.memory import peak_tensor_bytes
from benchmarks.per_subspace_loop import PerSubspaceLoop
from benchmarks.quantizer_share import PRESET, SIDE, build_autoencoder
from benchmarks.timing import CLOCKS, interleaved_times
from pqdiff.quantizers import QuantizerOutput
from pqdiff.quantizers.search import backends

LOOP, OURS = "loop", "pqdiff"
_UNPROVEN = "unproven: no GPU"
_GPU_COMMAND = "python -m benchmarks.train_speed --device cuda --batch 8 --output benchmarks/results/train_speed.json"
_LEARNING_RATE = 1e-5


class LoopQuantizer(nn.Module):
    """`PerSubspaceLoop` in the place of an autoencoder's quantizer."""

    def __init__(self, codebooks: torch.Tensor):
        super().__init__()
        self.loop = PerSubspaceLoop(codebooks)

    def forward(self, z: torch.Tensor) -> QuantizerOutput:
        return QuantizerOutput(*self.loop(z), {})


class TrainingStep:
    """One step of an autoencoder with a quantizer of its own; several may share the networks.

    Args:
        autoencoder: its networks are trained, its quantizer is replaced before every step.
        quantizer: replaces it.
        images: `(B, 3, H, W)` in [-1, 1].
    """

    def __init__(self, autoencoder, quantizer: nn.Module, images: torch.Tensor):
        self.autoencoder, self.quantizer, self.images = autoencoder, quantizer, images
        networks = [p for name, p in autoencoder.named_parameters() if not name.startswith("quantizer.")]
        self.optimizer = torch.optim.AdamW([*networks, *quantizer.parameters()], lr=_LEARNING_RATE)

    def __call__(self) -> torch.Tensor:
        """The loss, a scalar."""
        self.autoencoder.quantizer = self.quantizer
        with torch.autocast(self.images.device.type, torch.bfloat16, enabled=self.images.is_cuda):
            output = self.autoencoder(self.images)
            loss = (output.sample - self.images).abs().mean() + output.commit_loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()


def build_steps(network: str, batch: int, side: int, device: str = "cpu") -> dict[str, TrainingStep]:
    """A step per quantizer, its optimizer's state in place: both have run on one small image."""
    autoencoder = build_autoencoder(network == "small", device).train()
    ours = autoencoder.quantizer
    loop = LoopQuantizer(ours.codebooks.detach()).to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(batch, 3, side, side, generator=generator).mul_(2).sub_(1).to(device)
    steps = {}
    for name, quantizer in ((LOOP, loop), (OURS, ours)):
        step = TrainingStep(autoencoder, quantizer, images[:1, :, :64, :64])
        step()
        step.images = images
        steps[name] = step
    return steps


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Most memory alive at once beyond what was alive before."""
    if device == "cpu":
        return peak_tensor_bytes(function)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    function()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def measure(args: argparse.Namespace) -> dict:
    steps = build_steps(args.network, args.batch, args.side, args.device)
    # These first whole steps warm up as well.
    peaks = {name: peak_bytes(step, args.device) for name, step in steps.items()}
    times = interleaved_times(steps, args.rounds, device=args.device, warm_up=False, clock=args.clock)
    alone = interleaved_times(
        {name: quantizer_call(step) for name, step in steps.items()},
        5,
        seconds=2.0,
        device=args.device,
        clock=args.clock,
    )
    rows = {}
    for name, seconds in times.items():
        median, quantizer = statistics.median(seconds), statistics.median(alone[name])
        rows[name] = {
            "seconds_per_step": {"median": round(median, 4), "minimum": round(min(seconds), 4)},
            "images_per_second": round(args.batch / median, 4),
            "peak_step_megabytes": round(peaks[name] / 1e6, 1),
            "quantizer_alone_milliseconds": round(quantizer * 1e3, 3),
            "quantizer_share": round(quantizer / median, 5),
        }
    return {
        "machine": describe_machine(),
        "device": torch.cuda.get_device_name() if args.device == "cuda" else "cpu",
        "precision": "bf16 autocast" if args.device == "cuda" else "fp32",
        "threads": torch.get_num_threads(),
        "backend": backends.backend_name(torch.device(args.device)),
        "batch": args.batch,
        "side": args.side,
        "rounds": args.rounds,
        "clock": args.clock,
        **rows,
        "speedup": speedups(rows[LOOP], rows[OURS]),
        "saved_megabytes": round(rows[LOOP]["peak_step_megabytes"] - rows[OURS]["peak_step_megabytes"], 1),
    }


def speedups(loop: dict, ours: dict) -> dict[str, float]:
    """How many times longer the loop takes: the step by medians and by minima, and the quantizer alone."""
    steps = {key: loop["seconds_per_step"][key] / ours["seconds_per_step"][key] for key in ("median", "minimum")}
    alone = loop["quantizer_alone_milliseconds"] / ours["quantizer_alone_milliseconds"]
    return {**{key: round(value, 3) for key, value in steps.items()}, "quantizer_alone": round(alone, 1)}


def quantizer_call(step: TrainingStep) -> Callable[[], object]:
    """Forward and backward pass of the step's quantizer alone, on latents of its size."""
    batch, _, height, width = step.images.shape
    factor, channels = step.autoencoder.downsample_factor, step.autoencoder.config.latent_channels
    z = torch.randn(batch, channels, height // factor, width // factor, device=step.images.device)
    return functools.partial(_forward_backward, step.quantizer, z)


def _forward_backward(quantizer: nn.Module, z: torch.Tensor) -> None:
    output = quantizer(z.detach().requires_grad_())
    (output.codes.sum() + output.loss).backward()


def load_document(path: Path | None, network: str) -> dict:
    """The results so far, or none: the section of the other device stays as it is.

    Raises:
        ValueError: if the file is about another network.
    """
    if path is None or not path.exists():
        return {"network": network, "cpu": None, "gpu": None}
    document = json.loads(path.read_text())
    if document.get("network") != network:
        raise ValueError(
            f"--output ({path}) holds results of the network {document.get('network')!r}, not {network!r}: choose another"
        )
    return document


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure (default: cpu)")
    parser.add_argument("--network", choices=("paper", "small"), default="paper", help="default: paper")
    parser.add_argument("--batch", type=int, default=4, help="images per step (default: 4)")
    parser.add_argument("--side", type=int, default=SIDE, help=f"of the images in pixels (default: {SIDE})")
    parser.add_argument(
        "--rounds", type=int, default=2, help="steps of each quantizer, warm-up not counted (default: 2)"
    )
    parser.add_argument("--threads", type=int, help="threads on a CPU (default: torch's)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="processor, on a busy machine (default: wall)")
    parser.add_argument("--output", type=Path, help="file for the results as JSON; the other device's part is kept")
    args = parser.parse_args(arguments)
    for name in ("batch", "rounds", "threads"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if args.side < 64 or args.side % 8:
        parser.error(f"--side must be at least 64 and divisible by 8, got {args.side}")
    if args.clock == "processor" and (args.threads != 1 or args.device != "cpu"):
        parser.error("--clock processor needs --threads 1 and --device cpu: threads that wait count as busy")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU that torch can see; use --device cpu")
    try:
        document = load_document(args.output, f"the paper's {PRESET}" if args.network == "paper" else "small")
    except ValueError as error:
        sys.exit(f"train_speed: {error}")
    if args.threads:
        torch.set_num_threads(args.threads)
    result = measure(args)
    document["gpu" if args.device == "cuda" else "cpu"] = result
    document["gpu_command"] = _GPU_COMMAND
    document["gpu_status"] = "measured" if document["gpu"] else _UNPROVEN
    for name in (LOOP, OURS):
        row = result[name]
        print(f"{name:7} {row['images_per_second']:8.4f} images/s   peak {row['peak_step_megabytes']:9.1f} MB   "
              f"quantizer alone {row['quantizer_alone_milliseconds']:8.2f} ms, {row['quantizer_share']:.2%}")  # fmt: skip
    if args.output:
        args.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
