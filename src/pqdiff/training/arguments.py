"""Parser of the trainers: a YAML file gives defaults, flags win, and unknown keys are errors with a suggestion."""

import argparse
import inspect
from pathlib import Path
from typing import Any

from pqdiff.models.checks import check_limits
from pqdiff.suggestions import did_you_mean
from pqdiff.training.run_options import add_run_arguments, check_integers
from pqdiff.training.schedule import add_schedule_arguments
from pqdiff.yaml_text import parse_yaml, read_yaml


class TrainerParser(argparse.ArgumentParser):
    """Parser with `--config file.yaml`, with defaults in `--help`, and with the flags that all trainers share."""

    def __init__(self, description: str):
        super().__init__(description=description, formatter_class=_Formatter)
        self.add_argument("--config", type=Path, help="YAML file with defaults for these flags")
        add_run_arguments(self)
        optimizer = self.add_argument_group("optimizer")
        optimizer.add_argument("--adam_betas", type=float, nargs=2, default=(0.9, 0.999), help="betas of AdamW")
        optimizer.add_argument("--weight_decay", type=float, default=0.01, help="weight decay of AdamW")
        add_schedule_arguments(optimizer)

    def parse(self, argv: list[str] | None = None) -> argparse.Namespace:
        """Parsed flags; the config file gives defaults for flags that are not given.

        Raises:
            ValueError: for a config file that cannot be read, or that has a key or value which no flag takes, or for an
                output folder in a folder of data, or for integers out of range.
        """
        known, _ = self.parse_known_args(argv)
        if known.config:
            self.set_defaults(**self._read(known.config))
        args = self.parse_args(argv)
        if args.output_dir is None:
            raise ValueError("--output_dir is missing: give the folder for checkpoints, log and result")
        check_integers(vars(args))
        _check_output_dir(args)
        return args

    def _read(self, path: Path) -> dict:
        try:
            values = read_yaml(path)
        except ValueError as error:
            raise ValueError(f"--config {error}") from None
        actions = {action.dest: action for action in self._actions if action.dest not in ("help", "config")}
        check_keys(f"--config {path}", values, sorted(actions))
        return {key: self._converted(actions[key], value, path) for key, value in values.items()}

    def _converted(self, action: argparse.Action, value, path: Path):
        """The value as the flag would have read it from the command line."""
        if value is None or isinstance(action.const, bool):
            if value is not None and not isinstance(value, bool):
                raise ValueError(f"--config {path}: {action.dest} must be true or false, got {value!r}")
            return value
        if value is False and "no" in (action.choices or ()):
            value = "no"  # YAML reads the word no as false
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
    """Type of a flag whose value is YAML, for example a list of mappings."""
    if not isinstance(value, str):
        return value
    try:
        return parse_yaml(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"not YAML: {error}") from None


def construct(kind: type, flag: str, given: Any, **fixed):
    """`kind(...)` with the constructor arguments that a user gave in `flag`; they win over those in `fixed`.

    Raises:
        ValueError: for an argument that the class does not have, or a value that it does not take.
    """
    check_keys(flag, given, list(inspect.signature(kind).parameters))
    try:
        check_limits(given)
    except ValueError as error:
        raise ValueError(f"{flag}: {error}") from None
    try:
        return kind(**{**fixed, **given})
    except TypeError as error:
        raise ValueError(f"{flag}: {kind.__name__} does not take {given} ({error})") from None


def check_keys(flag: str, given: Any, known: list[str]) -> None:
    """Raise ValueError unless `given` is a mapping whose keys are all in `known`."""
    if not isinstance(given, dict):
        raise ValueError(f"{flag} must be a mapping with keys out of {', '.join(known)}, got {given!r}")
    for key in given:
        if key not in known:
            raise ValueError(f"{flag}: unknown key {key}: {did_you_mean(str(key), known)}")


def _check_output_dir(args: argparse.Namespace) -> None:
    """ValueError if images that a run writes would be data of the next one."""
    for flag in ("dataset", "validation_dataset", "solve_dataset"):
        source = getattr(args, flag, None)
        if source and Path(source).is_dir() and args.output_dir.resolve().is_relative_to(Path(source).resolve()):
            raise ValueError(
                f"--output_dir {args.output_dir} is in --{flag} {source}: images that the run writes would be trained on; "
                "choose a folder beside it"
            )


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass
