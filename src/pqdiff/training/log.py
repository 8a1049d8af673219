"""The log of a run: OUTPUT_DIR/log.jsonl and the trackers."""

import json
import math
import time
from pathlib import Path

import torch
from accelerate import Accelerator

from pqdiff.json_text import parse_json


class TrainingLog:
    """Collects losses, and writes a line for every so many steps.

    Args:
        accelerator: accelerator of the run.
        path: file of the log; one JSON object per line.
        use_trackers: whether trackers of accelerate get the numbers too.
    """

    def __init__(self, accelerator: Accelerator, path: Path, use_trackers: bool):
        self.accelerator, self.path, self.use_trackers = accelerator, path, use_trackers
        self._loss_sum, self._loss_count = torch.zeros((), device=accelerator.device), 0
        self._started = time.perf_counter()

    def add_loss(self, loss: torch.Tensor) -> None:
        """Add the loss of a micro-step to the mean of the next line."""
        self._loss_sum += loss.detach().float().mean()
        self._loss_count += 1

    def write(self, step: int, values: dict[str, float]) -> float:
        """Write a line with the mean loss since the last line and further numbers; all ranks must call it.

        Args:
            step: number of steps done.
            values: numbers by name.

        Returns:
            The mean loss.
        """
        loss = self._loss_sum / max(1, self._loss_count)
        if self.accelerator.num_processes > 1:
            loss = self.accelerator.reduce(loss, "mean")
        self._loss_sum, self._loss_count = torch.zeros_like(self._loss_sum), 0
        seconds = time.perf_counter() - self._started
        record = {"step": step, "loss": round(loss.item(), 6), **values, "seconds": round(seconds, 1)}
        if self.accelerator.is_main_process:
            with self.path.open("a") as file:
                file.write(json.dumps(record) + "\n")
        if self.use_trackers:
            self.accelerator.log({k: v for k, v in record.items() if k != "step"}, step=step)
        return record["loss"]

    def cut(self, step: int) -> None:
        """Remove the lines after step `step`, because these steps are done again."""
        if self.accelerator.is_main_process and self.path.exists():
            cut_lines(self.path, step)


def cut_lines(path: Path, step: int) -> None:
    """Remove the lines after step `step` from a file of JSON lines, and damaged ones."""
    lines = path.read_text(errors="replace").splitlines()
    kept = [line for line in lines if _step_of(line) <= step]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text("".join(f"{line}\n" for line in kept))
    partial.replace(path)  # a run that is killed here must not lose the lines before


def _step_of(line: str) -> float:
    """Step of a line; infinity if it is damaged."""
    try:
        return float(parse_json(line)["step"])
    except (ValueError, TypeError, LookupError, OverflowError):
        return math.inf
