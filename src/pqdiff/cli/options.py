"""Arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from pqdiff.checkpoints import BUNDLED

MODEL_HELP = f"Name of a shipped tokenizer ({', '.join(BUNDLED)}), folder or Hub id."

LARGEST_SIDE = 2**14  # pixels of a side: beyond it no memory is enough

Images = Annotated[
    list[Path],
    typer.Argument(metavar="IMAGE", help="Image files, or folders of them.", show_default=False),
]
ImageSource = Annotated[
    str, typer.Argument(metavar="SOURCE", help="Folder of images, or id of a data set on the Hub.", show_default=False)
]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", help="Folder for the results. It is made if it does not exist.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace files that are there already.")]
Split = Annotated[str, typer.Option(help="Split of the data set on the Hub.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
