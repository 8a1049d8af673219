"""What the commands print: tables and progress for people, JSON for programs."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pqdiff.clean_text import clean


def print_json(value) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2)
    print()


def print_lines(*lines: str) -> None:
    """Lines on stdout."""
    print("\n".join(map(clean, lines)))


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Table on stdout; the first column is text, the others are numbers."""
    table = Table(title=Text(clean(title)), title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(Text(clean(column)), justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))  # as Text, or brackets in a file name would be markup
    Console().print(table)


def number(value: float | None, digits: int) -> str:
    """A metric for a table; a dash where it is undefined."""
    return "-" if value is None else f"{value:.{digits}f}"


@contextlib.contextmanager
def progress_bar(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Show progress on stderr if that is a terminal.

    Yields a function to call with the name of the stage, the steps done and the number of steps, 0 if it is not known.
    """
    console = Console(stderr=True, quiet=quiet or not sys.stderr.isatty())
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    tasks: dict[str, int] = {}
    with Progress(*columns, console=console, transient=True) as progress:

        def show(stage: str, step: int, steps: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(clean(stage))
            progress.update(tasks[stage], completed=step, total=steps or None)

        yield show
