"""Checkpoints that are either complete or absent: all ranks write to a temporary folder, then one rank renames it.

Nothing in them can run code when it is read: weights and counts are safetensors, progress is JSON, and torch reads the
states of optimizers and of random numbers as plain data (`weights_only`).
"""

import contextlib
import json
import os
import pickle
import random
import re
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object, load
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn

from pqdiff.clean_text import one_line
from pqdiff.json_text import read_json
from pqdiff.training.run_folder import RunFolder

_NAME = re.compile(r"checkpoint-(\d{1,18})")
_DAMAGE = (  # what accelerate, torch and safetensors raise for files that are missing, damaged, or of another run
    *(OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, RuntimeError),
    *(pickle.UnpicklingError, SafetensorError),
    *(AssertionError, ArithmeticError, ImportError, MemoryError, struct.error),  # torch's reader of plain pickles
)


def find_checkpoint(run: RunFolder) -> tuple[tuple[Path, int] | None, list[Path]]:
    """The newest complete checkpoint of a run with its step, or None, and newer ones that are not complete."""
    damaged = []
    for step, path in sorted(_checkpoints(run), reverse=True):
        if _is_complete(path, step):
            return (path, step), damaged
        damaged.append(path)
    return None, damaged


def save_checkpoint(
    accelerator: Accelerator, run: RunFolder, step: int, modules: dict[str, nn.Module], keep: int
) -> Path:
    """Save models, optimizers and random states with accelerate, and further modules.

    All ranks must call it, because models may be shards. A process that is killed at any moment leaves the earlier
    checkpoints as they are: old ones, and unfinished ones of killed processes, are removed after the new one is complete.

    Args:
        accelerator: accelerator of what is saved.
        run: folder of the run.
        step: number of steps done.
        modules: EMA models and others that are the same on all ranks, by the name of their file.
        keep: number of checkpoints to keep.

    Returns:
        The folder of the checkpoint.

    Raises:
        OSError: on all ranks, if one of them cannot write.
    """
    name = f"checkpoint-{step:08d}"
    run.check(f".{name}.partial")
    target, partial = run.claim(name), run.path / f".{name}.partial"
    with _together(accelerator, target):
        if accelerator.is_main_process:
            _remove_partial(run)  # on a full disk they would take the space of the new one
            partial.mkdir()
    with _together(accelerator, target):
        accelerator.save_state(str(partial))
        if accelerator.is_main_process:
            for name, module in modules.items():
                save_model(module, str(partial / f"{name}.safetensors"))
    with _together(accelerator, target):
        if accelerator.is_main_process:
            files = [path for path in partial.rglob("*") if path.is_file()]
            sizes = {str(path.relative_to(partial)): path.stat().st_size for path in files}
            progress = {"step": step, "processes": accelerator.num_processes, "files": sizes}
            (partial / "progress.json").write_text(json.dumps(progress))
            _flush(partial)
            if target.exists():
                run.remove(target)
            partial.rename(target)
            checkpoints = sorted(path for _, path in _checkpoints(run))
            for old in checkpoints[: -max(1, keep)]:
                old.rename(
                    old.with_name(f".{old.name}.partial")
                )  # a killed removal must not leave what looks complete
            _remove_partial(run)
    return target


def load_checkpoint(accelerator: Accelerator, folder: Path, modules: dict[str, nn.Module]) -> int:
    """Load what `save_checkpoint` saved, and return the number of steps that were done.

    The number of processes may differ from that of the run that saved. Samples and noise are then the same, because they
    depend on the step and the place in the global batch, but gradients are added in another order, so that the result is
    not equal bit for bit.

    Raises:
        ValueError: naming the folder, if it does not fit the model, is damaged, or could run code.
    """
    if accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        kind = accelerator.distributed_type.value
        raise ValueError(f"{folder}: checkpoints of {kind} can run code when they are read: resume without {kind}")
    try:
        step, processes, _ = _progress(folder)
        if processes != accelerator.num_processes:
            accelerator.print(
                f"{folder.name} was saved by {processes} processes and is loaded by "
                f"{accelerator.num_processes}: with the same "
                "global batch size the samples are the same, but not the last bits of the result"
            )
        accelerator.load_state(str(folder))
        accelerator.step = 0  # counts micro-steps; a checkpoint lies between two steps
        for name, module in modules.items():
            load_model(module, str(folder / f"{name}.safetensors"))
        if processes == accelerator.num_processes:
            _check_random_states(folder / f"random_states_{accelerator.process_index}.pkl")
    except _DAMAGE as error:
        raise ValueError(f"{folder}: cannot resume from it ({one_line(error)[:400]})") from None
    return step


@contextlib.contextmanager
def _together(accelerator: Accelerator, target: Path) -> Iterator[None]:
    """Wait for all ranks after the block. If one of them cannot write, all raise OSError: none waits for ever."""
    problem = None
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors raise these on a full disk
        problem = one_line(error)[:400] or type(error).__name__
    problems = gather_object([problem]) if accelerator.num_processes > 1 else [problem]
    if problem := next(filter(None, [problem, *problems]), None):
        raise OSError(f"{target}: cannot be written ({problem})")


def _checkpoints(run: RunFolder) -> list[tuple[int, Path]]:
    """Steps and folders of the checkpoints that the run has made, complete or not."""
    paths = [path for path in run.path.glob("checkpoint-*") if run.owns(path.name)]
    return [(int(match[1]), path) for path in paths if (match := _NAME.fullmatch(path.name))]


def _is_complete(folder: Path, step: int) -> bool:
    """Whether a checkpoint holds all the files that were saved, in their sizes."""
    try:
        saved_step, _, files = _progress(folder)
        return saved_step == step and all((folder / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError):
        return False


def _progress(folder: Path) -> tuple[int, int, dict[str, int]]:
    """Step, number of processes, and sizes of the files by their names, which a checkpoint says of itself.

    Raises:
        ValueError: if it does not say it.
    """
    progress = read_json(folder / "progress.json", "progress.json")
    step, processes, files = (progress.get(key) for key in ("step", "processes", "files"))
    if not (type(step) is type(processes) is int and 0 <= step < 10**18 and 0 < processes < 10**6):
        raise ValueError(f"progress.json says step {step!s:.30} of {processes!s:.30} processes")
    if not isinstance(files, dict) or not files:
        raise ValueError("progress.json names no files")
    return step, processes, files


def _remove_partial(run: RunFolder) -> None:
    for path in run.path.glob(".checkpoint-*.partial"):
        run.remove(path)


def _check_random_states(path: Path) -> None:
    """ValueError unless the random states are those of a file: accelerate goes on without a word if it cannot read it."""
    states = load(path)
    same = torch.equal(torch.get_rng_state(), states["torch_manual_seed"])
    same = same and random.getstate() == states["random_state"]
    same = same and np.array_equal(np.random.get_state()[1], states["numpy_random_seed"][1])
    if torch.cuda.is_available():
        same = same and all(map(torch.equal, torch.cuda.get_rng_state_all(), states["torch_cuda_manual_seed"]))
    if not same:
        raise ValueError(f"the random states in {path.name} could not be restored")


def _flush(folder: Path) -> None:
    """Write the files to the disk, before the new name says that they are there."""
    for path in folder.rglob("*"):
        if path.is_file():
            handle = os.open(path, os.O_RDONLY)
            os.fsync(handle)
            os.close(handle)
