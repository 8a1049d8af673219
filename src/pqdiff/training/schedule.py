"""Learning rates as a function of the step alone, hence right for any number of processes and after any resume."""

import math

from ..pipelines.variants import Stage, read_stages


def parse_stages(values) -> list[Stage]:
    """Stages of a list of mappings, as a config file or `--stages` gives them.

    Raises:
        ValueError: for anything else, naming the stage.
    """
    if not isinstance(values, list) or not values:
        raise ValueError(
            f"stages ({values!r}) must be a list of {{resolution, steps, learning_rate, trainable}}, at least one"
        )
    return list(read_stages(values))


def stage_at(stages: list[Stage], step: int) -> tuple[int, int]:
    """Number of the stage that step `step` (from 0) belongs to, and the step within it; at the end of the run, all steps
    of the last stage.

    Raises:
        ValueError: if the stages have fewer steps.
    """
    rest = step
    for number, stage in enumerate(stages):
        if rest < stage.steps or (rest == stage.steps and number == len(stages) - 1):
            return number, rest
        rest -= stage.steps
    raise ValueError(
        f"the run is at step {step}, but its stages have {step - rest} steps in all: give more, or start anew"
    )


def learning_rate(stage: Stage, step: int, schedule: str = "constant", warmup_steps: int = 0) -> float:
    """Learning rate at step `step` (from 0) of a stage: linear warm-up from 0, then constant, or down to 0."""
    if step < warmup_steps:
        return stage.learning_rate * (step + 1) / (warmup_steps + 1)
    progress = (step - warmup_steps) / max(1, stage.steps - warmup_steps)
    if schedule == "linear":
        return stage.learning_rate * (1 - progress)
    if schedule == "cosine":
        return stage.learning_rate * (1 + math.cos(math.pi * progress)) / 2
    return stage.learning_rate
