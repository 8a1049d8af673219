"""Options of a run that all trainers share, and the file in which a run keeps its arguments."""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from pqdiff.training.options import Options
from pqdiff.yaml_text import dump_yaml, read_yaml


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `RunOptions`."""
    run = parser.add_argument_group("run")
    run.add_argument("--output_dir", type=Path, help="folder of the run, for checkpoints, log and result")
    run.add_argument("--resume", action="store_true", help="continue from the newest complete checkpoint, if any")
    run.add_argument("--seed", type=int, default=0, help="fixes the order of the data, crops, noise and timesteps")
    run.add_argument(
        "--mixed_precision", choices=("no", "bf16", "fp16"), default=None, help="default: that of accelerate, or no"
    )
    run.add_argument("--checkpointing_steps", type=positive, default=500, help="steps between checkpoints")
    run.add_argument("--checkpoints_total_limit", type=positive, default=2, help="number of checkpoints to keep")
    run.add_argument("--log_steps", type=positive, default=20, help="steps between lines of log.jsonl")
    run.add_argument("--report_to", default=None, help="tracker of accelerate: tensorboard, wandb, all, ...")
    run.add_argument("--dataloader_workers", type=int, default=0, help="processes per rank that load data")
    run.add_argument("--batch_size", type=positive, default=4, help="samples per process and micro-step")
    run.add_argument("--gradient_accumulation_steps", type=positive, default=1, help="micro-steps per optimizer step")
    run.add_argument("--max_grad_norm", type=not_negative, default=1.0, help="clip gradients to this norm; 0: do not")
    run.add_argument("--ema_decay", type=float, default=0.0, help="decay of the EMA of the weights; 0: no EMA")


@dataclass(frozen=True)
class RunOptions(Options):
    """What `Session` needs to know of a run.

    Attributes:
        output_dir: folder for checkpoints, log and result.
        resume: continue from the newest complete checkpoint in `output_dir`, if there is one.
        seed: fixes the order of the data, crops, noise and timesteps.
        mixed_precision: `no`, `bf16`, `fp16`, or None for the choice of accelerate.
        checkpointing_steps: optimizer steps between checkpoints.
        checkpoints_total_limit: number of checkpoints to keep.
        log_steps: optimizer steps between lines of the log.
        report_to: tracker of accelerate, or None.
        dataloader_workers: processes per rank that load data.
        batch_size: samples per process and micro-step; None to share a given global batch.
        gradient_accumulation_steps: micro-steps per optimizer step.
        max_grad_norm: gradients are scaled down to this norm; 0 leaves them alone.
        ema_decay: decay of the EMA of the weights; 0 for no EMA.
        arguments: all arguments of the trainer by name, for OUTPUT_DIR/config.yaml and the trackers.
    """

    output_dir: Path
    resume: bool = False
    seed: int = 0
    mixed_precision: str | None = None
    checkpointing_steps: int = 500
    checkpoints_total_limit: int = 2
    log_steps: int = 20
    report_to: str | None = None
    dataloader_workers: int = 0
    batch_size: int | None = 4
    gradient_accumulation_steps: int = 1
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        """Options from parsed flags, with all of them in `arguments`."""
        return super().from_args(argparse.Namespace(**vars(args), arguments=dict(vars(args))))


def positive(text: str) -> int:
    """Type of a flag whose value is an integer of at least 1."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def not_negative(text: str) -> float:
    """Type of a flag whose value is a finite number of at least 0."""
    if not 0 <= (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number, 0 or greater, got {number:g}")
    return number


_LARGEST = {  # beyond these numbers a run takes all memory before it starts, or does not end
    "seed": 2**63 - 1,
    **dict.fromkeys(("resolution", "validation_resolution", "sample_size", "buckets"), 2**14),
    **dict.fromkeys(("batch_size", "gradient_accumulation_steps", "crops", "lora_rank", "solve_batches"), 2**16),
    **dict.fromkeys(("dataloader_workers", "num_workers"), 2**10),
    "inference_steps": 10_000,
    **dict.fromkeys(("num_scenes", "num_samples", "num_prompts", "fit_images", "validation_images"), 10**8),
}
_LARGEST_OTHER = 10**9


def check_integers(arguments: Mapping[str, Any]) -> None:
    """Check the integers among parsed flags before any work.

    Raises:
        ValueError: naming the flag, if one is negative or too large.
    """
    for name, value in arguments.items():
        largest = _LARGEST.get(name, _LARGEST_OTHER)
        if type(value) is int and not 0 <= value <= largest:
            raise ValueError(f"--{name} ({value}) must be from 0 to {largest}")


def write_config(arguments: Mapping[str, Any], path: Path) -> None:
    """Write the arguments to a file that `--config` takes."""
    path.write_text(dump_yaml(_plain(arguments), sort_keys=True))


def changed_arguments(arguments: Mapping[str, Any], path: Path) -> list[str]:
    """What differs from the arguments in a file of `write_config`, as `name: before -> now`; nothing without a file."""
    try:
        before = read_yaml(path)
    except ValueError:
        return []
    if not isinstance(before, dict):
        return []
    now = _plain(arguments)
    return [f"{key}: {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]


def _plain(arguments: Mapping[str, Any]) -> dict:
    """The arguments as values that YAML can hold."""
    values = {key: value for key, value in arguments.items() if key not in ("config", "resume")}
    for key, value in values.items():
        if isinstance(value, Path):
            values[key] = str(value)
        elif isinstance(value, tuple):
            values[key] = list(value)
    return values
