"""`pqdiff encode`: images to files of bit-packed tokens."""

from typing import Annotated

import typer

from pqdiff.checkpoints import BEST_AT_EACH_RATE
from pqdiff.cli.options import MODEL_HELP, Force, Images, Json, OutputFolder

_DEFAULT_MODEL = BEST_AT_EACH_RATE[0] if BEST_AT_EACH_RATE else ...


def encode(
    images: Images,
    output: OutputFolder,
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)] = _DEFAULT_MODEL,
    search_steps: Annotated[
        int,
        typer.Option(
            help="Look for tokens whose decoded image has a higher SSIMULACRA2, in so many steps, e.g. 100: slow, the same "
            "rate. Images of at most 2 megapixels. 0 means the nearest codewords.",
            min=0,
        ),
    ] = 0,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write the tokens of each image to a file, bit-packed."""
    from pqdiff.cli.image_files import images_of, unique_names
    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import number, print_json, print_table, progress_bar
    from pqdiff.cli.tiled_tokenizer import check_searchable, encode_pixels, load_tiled_autoencoder
    from pqdiff.data.cache.image_codes import ImageCodes, save_codes
    from pqdiff.data.files import check_new_file
    from pqdiff.data.images.reading import load_image, to_tensor
    from pqdiff.hub.local_paths import public_name
    from pqdiff.models.fingerprint import fingerprint

    silence_libraries(quiet=json)
    images = images_of(images)
    files = [output / f"{stem}.pq.safetensors" for stem in unique_names([path.stem for path in images])]
    for file in files:
        check_new_file(file, force)
    autoencoder = load_tiled_autoencoder(model)
    for path in images:  # a broken image, or one that is too large, stops the command before anything is written
        check_searchable(autoencoder, load_image(path), path.name, search_steps)
    rows = []
    with progress_bar(quiet=json) as show:
        for count, (path, file) in enumerate(zip(images, files, strict=True)):
            show("encoding", count, len(images))
            pixels = to_tensor(load_image(path))
            _, height, width = pixels.shape
            indices = encode_pixels(autoencoder, pixels, search_steps)[0]
            sizes = autoencoder.quantizer.codebook_sizes
            codes = ImageCodes(indices, sizes, height, width, public_name(model), fingerprint(autoencoder))
            size = save_codes(codes, file)
            rate = 8 * size / height / width
            rows.append({"image": str(path), "file": str(file), "bytes": size, "bits_per_pixel": rate})
    if json:
        print_json({"model": model, "results": rows})
        return
    table = [[row["file"], str(row["bytes"]), number(row["bits_per_pixel"], 3)] for row in rows]
    print_table(f"Tokens of {model}", ["file", "bytes", "bits/pixel"], table)
