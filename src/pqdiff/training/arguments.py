"""Arguments of the trainers: a YAML file gives defaults, flags win, unknown keys are errors with a suggestion."""

import argparse
import difflib
import inspect
from pathlib import Path
from typing import Any

import yaml


class TrainerParser(argparse.ArgumentParser):
    """Parser with `--config file.yaml`, defaults in `--help`, and the flags that all trainers have."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=_Formatter)
        run = self.add_argument_group("run")
        run.add_argument("--config", type=Path, help="YAML file with defaults for these flags")
        run.add_argument("--output_dir", type=Path, required=False, help="folder of the run: checkpoints, log, result")
        run.add_argument("--resume", action="store_true", help="go on from the newest complete checkpoint, if any")
        run.add_argument("--seed", type=int, default=0, help="fixes data order, crops, noise and timesteps")
        run.add_argument(
            "--mixed_precision",
            choices=("no", "bf16", "fp16"),
            default=None,
            help="default: that of accelerate, or no",
        )
        run.add_argument("--checkpointing_steps", type=positive, default=500, help="steps between checkpoints")
        run.add_argument("--checkpoints_total_limit", type=positive, default=2, help="older ones are removed")
        run.add_argument("--log_steps", type=positive, default=20, help="steps between lines of log.jsonl")
        run.add_argument("--report_to", default=None, help="accelerate tracker: tensorboard, wandb, all, ...")
        run.add_argument("--dataloader_workers", type=int, default=0, help="processes that load data, per rank")
        optimizer = self.add_argument_group("optimizer")
        optimizer.add_argument("--batch_size", type=positive, default=4, help="samples per process and micro-step")
        optimizer.add_argument("--gradient_accumulation_steps", type=positive, default=1, help="micro-steps per step")
        optimizer.add_argument("--adam_betas", type=float, nargs=2, default=(0.9, 0.999), help="AdamW")
        optimizer.add_argument("--weight_decay", type=float, default=0.01, help="AdamW")
        optimizer.add_argument("--max_grad_norm", type=not_negative, default=1.0, help="clip gradients; 0: do not")
        optimizer.add_argument("--lr_schedule", choices=("constant", "linear", "cosine"), default="constant")
        optimizer.add_argument("--lr_warmup_steps", type=int, default=0, help="from 0, at the start of every stage")
        optimizer.add_argument("--ema_decay", type=float, default=0.0, help="average of the weights; 0: none")

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parsed flags over the values of the config file over the defaults.

        Raises:
            ValueError: for a config file that cannot be read, or with a key or value that no flag takes.
        """
        known, _ = self.parse_known_args(argv)
        if known.config:
            self.set_defaults(**self._read(known.config))
        args = self.parse_args(argv)
        if args.output_dir is None:
            raise ValueError("--output_dir is missing: give the folder that the run shall fill")
        return args

    def _read(self, path: Path) -> dict:
        try:
            values = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"--config {path}: {' '.join(str(error).split())}") from None
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        check_keys(f"--config {path}", values, sorted(actions))
        return {key: self._converted(actions[key], value, path) for key, value in values.items()}

    def _converted(self, action: argparse.Action, value, path: Path):
        """The value as the flag would have read it."""
        if value is None or isinstance(action.const, bool):
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"--config {path}: {action.dest} must be true or false, got {value!r}")
            return value
        if value is False and "no" in (action.choices or ()):
            value = "no"  # which YAML takes for false
        values = value if action.nargs and isinstance(value, list) else [value]
        if isinstance(action.nargs, int) and len(values) != action.nargs:
            raise ValueError(f"--config {path}: {action.dest} must be a list of {action.nargs}, got {value!r}")
        if action.type is structured:
            return structured(value)
        try:
            values = [(action.type or str)(str(item)) for item in values]
        except (TypeError, ValueError, argparse.ArgumentTypeError) as error:
            raise ValueError(f"--config {path}: {action.dest} cannot be {value!r} ({error})") from None
        for item in values:
            if action.choices is not None and item not in action.choices:
                raise ValueError(
                    f"--config {path}: {action.dest} ({item!r}) must be one of {', '.join(action.choices)}"
                )
        return values if action.nargs else values[0]


def structured(value):
    """Type of a flag whose value is YAML: lists of mappings, such as stages."""
    if not isinstance(value, str):
        return value
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise argparse.ArgumentTypeError(f"not YAML: {error}") from None


def positive(text: str) -> int:
    """Type of a flag whose value is a whole number above 0."""
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {number}")
    return number


def not_negative(text: str) -> float:
    """Type of a flag whose value is a number, 0 or above."""
    if not 0 <= (number := float(text)) < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number, 0 or greater, got {number:g}")
    return number


def construct(kind: type, flag: str, given: Any, **fixed):
    """`kind(...)` with constructor arguments that a user gave in `flag`, over those that the trainer knows.

    Raises:
        ValueError: for an argument that the class does not have, with a suggestion, or a value that it does not take.
    """
    check_keys(flag, given, list(inspect.signature(kind).parameters))
    try:
        return kind(**{**fixed, **given})
    except TypeError as error:
        raise ValueError(f"{flag}: {kind.__name__} does not take {given} ({error})") from None


def check_keys(flag: str, given: Any, known: list[str]) -> None:
    """Raise ValueError unless `given` is a mapping with keys out of `known`."""
    if not isinstance(given, dict):
        raise ValueError(f"{flag} must be a mapping with keys out of {', '.join(known)}, got {given!r}")
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
            hint = f": did you mean {close[0]}?" if close else f"; known: {', '.join(known)}"
            raise ValueError(f"{flag}: unknown key {key}{hint}")


def write_config(args: argparse.Namespace, path: Path) -> None:
    """The arguments as a file that `--config` takes."""
    path.write_text(yaml.safe_dump(_plain(args), sort_keys=True))


def changed_arguments(args: argparse.Namespace, path: Path) -> list[str]:
    """What differs from the arguments in a file of `write_config`, as `name: before -> now`; nothing without a file."""
    try:
        before = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return []
    if not isinstance(before, dict):
        return []
    now = _plain(args)
    return [f"{key}: {before[key]} -> {now[key]}" for key in now if key in before and before[key] != now[key]]


def _plain(args: argparse.Namespace) -> dict:
    """The arguments as what YAML can hold."""
    values = {key: value for key, value in vars(args).items() if key not in ("config", "resume")}
    for key, value in values.items():
        if isinstance(value, Path):
            values[key] = str(value)
        elif isinstance(value, tuple):
            values[key] = list(value)
    return values


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass
