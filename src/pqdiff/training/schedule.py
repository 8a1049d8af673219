"""Learning rates as a function of the step alone: right for any number of processes and after any resume."""

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass

from pqdiff.adaptation.stages import Stage
from pqdiff.training.options import Options

SCHEDULES = ("constant", "linear", "cosine")


def add_schedule_arguments(parser: argparse._ActionsContainer) -> None:
    """Add the flags of `ScheduleOptions`."""
    parser.add_argument("--lr_schedule", choices=SCHEDULES, default="constant", help="learning rate after the warm-up")
    parser.add_argument("--lr_warmup_steps", type=int, default=0, help="steps of linear warm-up in every stage")


@dataclass(frozen=True)
class ScheduleOptions(Options):
    """How the learning rate changes within a stage.

    Attributes:
        lr_schedule: after the warm-up: `constant`, or `linear` or `cosine` down to 0 at the end of the stage.
        lr_warmup_steps: steps of linear warm-up from 0.
    """

    lr_schedule: str = "constant"
    lr_warmup_steps: int = 0

    def learning_rate(self, stage: Stage, step: int) -> float:
        """Learning rate at step `step` (from 0) of a stage."""
        if step < self.lr_warmup_steps:
            return stage.learning_rate * (step + 1) / (self.lr_warmup_steps + 1)
        progress = (step - self.lr_warmup_steps) / max(1, stage.steps - self.lr_warmup_steps)
        if self.lr_schedule == "linear":
            return stage.learning_rate * (1 - progress)
        if self.lr_schedule == "cosine":
            return stage.learning_rate * (1 + math.cos(math.pi * progress)) / 2
        return stage.learning_rate


def stage_at(stages: Sequence[Stage], step: int) -> tuple[int, int]:
    """Number (from 0) of the stage that step `step` (from 0) belongs to, and the step within that stage.

    At the end of the run this is the last stage, with all of its steps done.

    Raises:
        ValueError: if the stages together have fewer steps.
    """
    rest = step
    for number, stage in enumerate(stages):
        if rest < stage.steps or (rest == stage.steps and number == len(stages) - 1):
            return number, rest
        rest -= stage.steps
    raise ValueError(
        f"the run is at step {step}, but its stages have only {step - rest} steps: give more steps or start a new run"
    )
