"""Learning rates as a function of the step alone, hence right for any number of processes and after any resume."""

import math

from ..pipelines.variants import Stage


def parse_stages(values) -> list[Stage]:
    """Stages of a list of mappings, as a config file or `--stages` gives them.

    Raises:
        ValueError: for anything else, naming the stage.
    """
    if not isinstance(values, list) or not values:
        raise ValueError("stages must be a list of {resolution, steps, learning_rate, trainable}, at least one")
    stages = []
    for number, value in enumerate(values, start=1):
        try:
            stages.append(Stage(**{**value, "learning_rate": float(value["learning_rate"])}))
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"stage {number} ({value}): {error}") from None
    return stages


def stage_at(stages: list[Stage], step: int) -> tuple[int, int]:
    """Number of the stage that step `step` (from 0) belongs to, and the step within it."""
    for number, stage in enumerate(stages):
        if step < stage.steps:
            return number, step
        step -= stage.steps
    raise ValueError(f"step is {step + 1} beyond the last stage")


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
