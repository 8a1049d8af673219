"""`pqdiff decode`: files of tokens to images."""

from pathlib import Path
from typing import Annotated

import typer

from pqdiff.checkpoints import BUNDLED
from pqdiff.cli.options import MODEL_HELP, Force, Json, OutputFolder


def decode(
    codes: Annotated[
        list[Path], typer.Argument(metavar="CODES", help="Files that `pqdiff encode` has written.", show_default=False)
    ],
    output: OutputFolder,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help=MODEL_HELP + " Default: the shipped one that is named in the file."),
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Turn files of tokens back into images. They have the same pixels as those of `pqdiff reconstruct`."""
    from pqdiff.cli.image_files import save_image, unique_names
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import print_json, print_lines, progress_bar
    from pqdiff.cli.tiled_tokenizer import decode_pixels, load_tiled_autoencoder
    from pqdiff.data.cache.image_codes import load_codes
    from pqdiff.data.files import check_new_file
    from pqdiff.data.images.reading import to_image

    silence_libraries(quiet=json)
    stems = unique_names([path.name.removesuffix(".safetensors").removesuffix(".pq") for path in codes])
    files = [output / f"{stem}.png" for stem in stems]
    for file in files:
        check_new_file(file, force)
    loaded, autoencoders = [(path, load_codes(path, header_only=True)) for path in codes], {}
    for path, code in loaded:
        name = model or code.model
        if model is None and name not in BUNDLED:  # a file of a stranger must not choose what is loaded
            raise ValueError(f"{path}: holds tokens of {name}, which does not ship with pqdiff: give it as --model")
        if name not in autoencoders:
            autoencoders[name] = load_tiled_autoencoder(name)
        _check_codes(path, code, name, autoencoders[name])
        load_codes(path)  # a broken file stops the command before anything is written
    rows = []
    with progress_bar(quiet=json) as show:
        for count, ((path, code), file) in enumerate(zip(loaded, files, strict=True)):
            show("decoding", count, len(loaded))
            autoencoder = autoencoders[model or code.model]
            pixels = decode_pixels(autoencoder, load_codes(path).indices[None], code.height, code.width)
            rows.append({"codes": str(path), "file": save_image(to_image(pixels), file)})
    if json:
        print_json({"results": rows})
    else:
        print_lines("Written:", *(f"  {row['file']}" for row in rows))


def _check_codes(path: Path, code, name: str, autoencoder) -> None:
    """ValueError unless the model `name` has made the `ImageCodes` in `code`."""
    from pqdiff.models.fingerprint import fingerprint

    mark, factor = fingerprint(autoencoder), autoencoder.downsample_factor
    if mark != code.fingerprint:
        raise ValueError(
            f"{path}: holds tokens of {code.model} (fingerprint {code.fingerprint}), "
            f"which {name} (fingerprint {mark}) cannot decode"
        )
    extent = (-(-code.height // factor), -(-code.width // factor))
    if tuple(code.indices.shape[1:]) != extent or code.codebook_sizes != autoencoder.quantizer.codebook_sizes:
        raise ValueError(
            f"{path}: {tuple(code.indices.shape)} tokens do not fit {code.height} x {code.width} pixels of {name}"
        )
