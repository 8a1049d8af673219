"""The `pqdiff` command. A user's mistake ends with one line on stderr and exit code 2, never with a traceback."""

import sys
import warnings

import typer
from safetensors import SafetensorError

from . import generate, hub, models, photos

_INTERRUPTED = 130  # the exit code that typer makes of Ctrl-C

app = typer.Typer(
    help="Pictures and photos through product-quantized latents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (
    *(generate.generate, photos.reconstruct, photos.encode, photos.decode),
    *(models.info, models.evaluate, models.fit, hub.push),
):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    from diffusers.utils import logging

    warnings.simplefilter("ignore")  # of libraries, about themselves
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, OSError, SafetensorError) as error:
        print(f"pqdiff: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as exit:
        if exit.code == _INTERRUPTED:
            print("pqdiff: interrupted; nothing was left half-written", file=sys.stderr)
        raise
