"""Checkpoints that are complete or not there: written aside by all ranks, then renamed by one."""

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
    """Newest complete checkpoint below `output_dir` and its step; None if there is none."""
    found = [
        (int(match[1]), path) for path in output_dir.glob("checkpoint-*") if (match := _NAME.fullmatch(path.name))
    ]
    if not found:
        return None
    step, path = max(found)
    return path, step


def save_checkpoint(
    accelerator: Accelerator, output_dir: Path, step: int, averages: dict[str, nn.Module], keep: int
) -> Path:
    """Save models, optimizer and random states through accelerate (every rank takes part, as sharded training needs),
    and the averaged models.

    A process killed at any moment leaves the earlier checkpoints as they were. Only after the new one has its name are
    the oldest removed, until `keep` are left, and what killed processes left unfinished.
    """
    target = output_dir / f"checkpoint-{step:08d}"
    aside = output_dir / f".{target.name}.partial"
    if accelerator.is_main_process:
        for stale in output_dir.glob(".checkpoint-*.partial"):  # on a full disk they would keep it full
            shutil.rmtree(stale, ignore_errors=True)
        aside.mkdir(parents=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(aside))
        if accelerator.is_main_process:
            for name, model in averages.items():
                save_model(model, str(aside / f"ema_{name}.safetensors"))
            (aside / "progress.json").write_text(json.dumps({"step": step, "processes": accelerator.num_processes}))
    except (RuntimeError, SafetensorError) as error:  # what torch and safetensors make of a full disk
        raise OSError(f"{target}: cannot be written ({' '.join(str(error).split())[:400]})") from None
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _flush(aside)
        if target.exists():
            shutil.rmtree(target)
        aside.rename(target)
        checkpoints = sorted(path for path in output_dir.glob("checkpoint-*") if _NAME.fullmatch(path.name))
        for old in checkpoints[: -max(1, keep)]:
            old.rename(old.with_name(f".{old.name}.partial"))  # a removal that is cut short must not look complete
        for stale in output_dir.glob(".checkpoint-*.partial"):
            shutil.rmtree(stale)
    accelerator.wait_for_everyone()
    return target


def load_checkpoint(accelerator: Accelerator, folder: Path, averages: dict[str, nn.Module]) -> int:
    """Undo `save_checkpoint`: returns the number of steps that were done.

    Samples and noise belong to a step and a place in the global batch, so another number of processes goes on with the
    same ones; gradients are then added up in another order, and only the same number gives the same bits.

    Raises:
        ValueError: naming the folder, if it does not fit the model.
    """
    try:
        progress = json.loads((folder / "progress.json").read_text())
        if progress["processes"] != accelerator.num_processes:
            accelerator.print(
                f"{folder.name} was saved by {progress['processes']} processes and goes on with "
                f"{accelerator.num_processes}: the same samples if the global batch is as large, not the same bits"
            )
        accelerator.load_state(str(folder))
        accelerator.step = 0  # it counts micro-steps; a checkpoint lies between two steps, whatever their number now
        for name, model in averages.items():
            load_model(model, str(folder / f"ema_{name}.safetensors"))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"{folder}: cannot resume from it ({' '.join(str(error).split())[:400]})") from None
    return progress["step"]


def _flush(folder: Path) -> None:
    """Put the files on the disk before the rename promises that they are."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
