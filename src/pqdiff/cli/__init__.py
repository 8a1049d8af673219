"""The `pqdiff` command.

A mistake of the user ends with one line on stderr and exit code 2, never with a traceback. `--help` and wrong usage are
answered at once: whatever imports torch or diffusers is imported inside a command's function, after its arguments are read.
"""

import sys
import warnings

import typer
from safetensors import SafetensorError

from pqdiff.clean_text import one_line
from pqdiff.cli import compare, convert_vae, decode, encode, evaluate, fit, generate, info, push, reconstruct

_INTERRUPTED = 130  # the exit code that typer gives to Ctrl-C

app = typer.Typer(
    help="Encode, reconstruct and generate images with product-quantized latents.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for _command in (
    *(generate.generate, reconstruct.reconstruct, encode.encode, decode.decode),
    *(info.info, evaluate.evaluate, compare.compare, fit.fit, convert_vae.convert_vae, push.push),
):
    app.command()(_command)


def main() -> None:
    """Entry point of the console script."""
    warnings.simplefilter("ignore")  # libraries warn about themselves, which a user of the command cannot change
    try:
        app()
    except (ValueError, OSError, SafetensorError) as error:
        print(f"pqdiff: {one_line(error)}", file=sys.stderr)
        sys.exit(2)
    except RecursionError:
        print("pqdiff: a file is nested too deeply", file=sys.stderr)
        sys.exit(2)
    except SystemExit as exit:
        if exit.code == _INTERRUPTED:
            print("pqdiff: interrupted; nothing was left half-written", file=sys.stderr)
        raise
