"""The `pqdiff` command. A user's mistake ends with one line on stderr and exit code 2, never with a traceback."""

import sys

import typer

from . import models, photos

app = typer.Typer(
    help="Photos through product-quantized latents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (photos.reconstruct, photos.encode, photos.decode, models.info, models.evaluate, models.fit):
    app.command()(command)


def main() -> None:
    """Entry point of the console script."""
    from diffusers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        app()
    except (ValueError, OSError) as error:
        print(f"pqdiff: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("pqdiff: interrupted; nothing was left half-written", file=sys.stderr)
        sys.exit(130)
