"""Checkpoints that are either complete or absent: all ranks write to a temporary folder, then one rank renames it."""

import json
import os
import re
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

_NAME = re.compile(r"checkpoint-(\d+)")


def find_checkpoint(output_dir: Path) -> tuple[Path, int] | None:
    """Folder of the newest complete checkpoint in `output_dir` and its step, or None."""
    found = [
        (int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    if not found:
        return None
    step, path = max(found)
    return path, step


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, step: int, ema: dict[str, nn.Module], keep: int
) -> Path:
    """Save models, optimizers and random states with accelerate, and the EMA models.

    All ranks must call it, because models may be shards. A process that is killed at any moment leaves the earlier
    checkpoints as they are: old ones, and unfinished ones of killed processes, are removed after the new one is complete.

    Args:
        accelerator: accelerator of what is saved.
        output_dir: folder of the checkpoints.
        step: number of steps done.
        ema: EMA models by name.
        keep: number of checkpoints to keep.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: if it cannot be written.
    """
    target = output_dir / f"checkpoint-{step:08d}"
    partial = output_dir / f".{target.name}.partial"
    if accelerator.is_main_process:
        for stale in output_dir.glob(
            ".checkpoint-*.partial"
        ):  # on a full disk they would take the space of the new one
            shutil.rmtree(stale, ignore_errors=True)
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            for name, model in ema.items():
                save_model(model, str(partial / f"ema_{name}.safetensors"))
            (partial / "progress.json").write_text(json.dumps({"step": step, "processes": accelerator.num_processes}))
    except (RuntimeError, SafetensorError) as error:  # torch and safetensors raise these on a full disk
        raise OSError(f"{target}: cannot be written ({' '.join(str(error).split())[:400]})") from None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _flush(partial)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        checkpoints = sorted(path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name))
        for old in checkpoints[: -max(1, keep)]:
            old.rename(old.with_name(f".{old.name}.partial"))  # a killed removal must not leave what looks complete
        for stale in output_dir.glob(".checkpoint-*.partial"):
            shutil.rmtree(stale)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(accelerator: Accelerator, folder: Path, ema: dict[str, nn.Module]) -> int:
    """Load what `save_checkpoint` saved, and return the number of steps that were done.

    The number of processes may differ from that of the run that saved. Samples and noise are then the same, because they
    depend on the step and the place in the global batch, but gradients are added in another order, so that the result is
    not equal bit for bit.

    Raises:
        ValueError: naming the folder, if it does not fit the model.
    """
    try:
        progress = json.loads((folder / "progress.json").read_text())
        if progress["processes"] != accelerator.num_processes:
            accelerator.print(
                f"{folder.name} was saved by {progress['processes']} processes and is loaded by "
                f"{accelerator.num_processes}: with the same "
                "global batch size the samples are the same, but not the last bits of the result"
            )
        accelerator.load_state(str(folder))
        accelerator.step = 0  # counts micro-steps; a checkpoint lies between two steps
        for name, model in ema.items():
            load_model(model, str(folder / f"ema_{name}.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot resume from it ({' '.join(str(error).split())[:400]})") from None
    return progress["step"]


def _flush(folder: Path) -> None:
    """Write the files to the disk, before the new name says that they are there."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
