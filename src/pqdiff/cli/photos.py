"""Commands on photos: reconstruct, encode, decode."""

import itertools
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..checkpoints import BUNDLED, FOR_PICTURES
from ..data.codes import ImageCodes, load_codes, save_codes
from ..data.files import atomic_file
from ..data.images import load_image, normalize, pad_to_multiple, to_image, to_pixels, to_tensor
from ..hub.resolve import load_autoencoder
from ..metrics import DatasetPSNR, ImageSSIM
from ..metrics.reconstruction import as_number
from ..models import AutoencoderPQ
from ..models.fingerprint import fingerprint
from .output import number, print_json, print_table, progress_bar
from .panels import panel

_TILE = 1024  # pixels; large photos go through in tiles

Photos = Annotated[list[Path], typer.Argument(help="Photos of any kind that Pillow reads.", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results; made if missing.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
MODEL_HELP = f"Shipped name ({', '.join(BUNDLED)}), folder or Hub id."


def reconstruct(
    photos: Photos,
    output: Output,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", help=MODEL_HELP + " Repeatable; default: the best at every rate."),
    ] = None,
    save_images: Annotated[bool, typer.Option(help="Also write each reconstruction as a PNG of full size.")] = False,
    json: Json = False,
) -> None:
    """Send photos through tokenizers; write labelled panels and print what each model keeps."""
    names = model or sorted(FOR_PICTURES, key=lambda name: -load_autoencoder(name).bits_per_pixel)
    models = list(zip(_unique([Path(name).name for name in names]), map(_load_tiled, names), strict=True))
    for photo in photos:
        load_image(photo)  # a bad photo stops the command before anything is written
    rows, files = [], []
    with progress_bar(quiet=json) as show:
        for count, (photo, stem) in enumerate(zip(photos, _unique([photo.stem for photo in photos]), strict=True)):
            pixels = to_tensor(load_image(photo))
            columns = []
            for index, (name, autoencoder) in enumerate(models):
                show("reconstructing", count * len(models) + index, len(photos) * len(models))
                start = time.perf_counter()
                result = _to_photo(autoencoder, _to_indices(autoencoder, pixels), *pixels.shape[1:])
                seconds = time.perf_counter() - start
                row = {"photo": str(photo), "model": name, "bits_per_pixel": autoencoder.bits_per_pixel}
                row |= {**_compare(result, pixels), "seconds": round(seconds, 3)}
                rows.append(row)
                caption = f"{row['bits_per_pixel']:g} bpp, {number(row['psnr'], 1)} dB"
                columns.append((name.removeprefix("pqgan-"), caption, result))
                if save_images:
                    files.append(_save_image(to_image(result), output / f"{stem}.{name}.png"))
            files.append(_save_image(panel(pixels, columns), output / f"{stem}.panel.png"))
    if json:
        print_json({"results": rows, "files": files})
        return
    for photo, results in itertools.groupby(rows, lambda row: row["photo"]):  # a table each: names of models are long
        table = [
            [r["model"].removeprefix("pqgan-"), f"{r['bits_per_pixel']:g}"]
            + [number(r[key], digits) for key, digits in (("psnr", 2), ("ssim", 4), ("seconds", 2))]
            for r in results
        ]
        print_table(Path(photo).name, ["model", "bits/pixel", "PSNR dB", "SSIM", "seconds"], table)
    print("\n".join(["Written:", *(f"  {file}" for file in files)]))


def encode(
    photos: Photos,
    output: Output,
    model: Annotated[str, typer.Option("--model", "-m", help=MODEL_HELP)] = FOR_PICTURES[0] if FOR_PICTURES else ...,
    json: Json = False,
) -> None:
    """Turn photos into files of bit-packed tokens."""
    autoencoder = _load_tiled(model)
    for photo in photos:
        load_image(photo)
    rows = []
    with progress_bar(quiet=json) as show:
        for count, (photo, stem) in enumerate(zip(photos, _unique([photo.stem for photo in photos]), strict=True)):
            show("encoding", count, len(photos))
            pixels = to_tensor(load_image(photo))
            _, height, width = pixels.shape
            indices = _to_indices(autoencoder, pixels)[0]
            sizes = autoencoder.quantizer.codebook_sizes
            codes = ImageCodes(indices, sizes, height, width, model, fingerprint(autoencoder))
            path = output / f"{stem}.pq.safetensors"
            size = save_codes(codes, path)
            rows.append(
                {"photo": str(photo), "file": str(path), "bytes": size, "bits_per_pixel": 8 * size / height / width}
            )
    if json:
        print_json({"model": model, "results": rows})
        return
    print_table(
        f"Tokens of {model}",
        ["file", "bytes", "bits/pixel"],
        [[row["file"], str(row["bytes"]), number(row["bits_per_pixel"], 3)] for row in rows],
    )


def decode(
    codes: Annotated[list[Path], typer.Argument(help="Files written by `pqdiff encode`.", show_default=False)],
    output: Output,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help=MODEL_HELP + " Default: the one named in the file.")
    ] = None,
    json: Json = False,
) -> None:
    """Turn files of tokens back into photos: the same pixels that `pqdiff reconstruct` shows."""
    loaded, autoencoders = [(path, load_codes(path)) for path in codes], {}
    for path, code in loaded:
        name = model or code.model
        if name not in autoencoders:
            autoencoders[name] = _load_tiled(name)
        _check_codes(path, code, name, autoencoders[name])
    rows = []
    with progress_bar(quiet=json) as show:
        stems = _unique([path.name.removesuffix(".safetensors").removesuffix(".pq") for path, _ in loaded])
        for count, ((path, code), stem) in enumerate(zip(loaded, stems, strict=True)):
            show("decoding", count, len(loaded))
            autoencoder = autoencoders[model or code.model]
            image = to_image(_to_photo(autoencoder, code.indices[None], code.height, code.width))
            rows.append({"codes": str(path), "file": _save_image(image, output / f"{stem}.png")})
    if json:
        print_json({"results": rows})
    else:
        print("\n".join(["Written:", *(f"  {row['file']}" for row in rows)]))


def _load_tiled(name: str) -> AutoencoderPQ:
    autoencoder = load_autoencoder(name)
    autoencoder.tile_sample_min_size = _TILE
    autoencoder.enable_tiling()
    return autoencoder


@torch.no_grad()
def _to_indices(autoencoder: AutoencoderPQ, pixels: torch.Tensor) -> torch.Tensor:
    """Tokens (1, G, h, w) of uint8 pixels (3, H, W) of any size."""
    return autoencoder.encode_to_indices(pad_to_multiple(normalize(pixels[None]), autoencoder.downsample_factor))


@torch.no_grad()
def _to_photo(autoencoder: AutoencoderPQ, indices: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """uint8 pixels (3, H, W) of tokens (1, G, h, w), cropped to the original size."""
    return to_pixels(autoencoder.decode_from_indices(indices).sample[0, :, :height, :width])


def _check_codes(path: Path, code: ImageCodes, name: str, autoencoder: AutoencoderPQ) -> None:
    """ValueError unless the model made these codes."""
    mark, factor = fingerprint(autoencoder), autoencoder.downsample_factor
    if mark != code.fingerprint:
        raise ValueError(f"{path}: holds codes of {code.model} ({code.fingerprint}), not of {name} ({mark})")
    extent = (-(-code.height // factor), -(-code.width // factor))
    if tuple(code.indices.shape[1:]) != extent or code.codebook_sizes != autoencoder.quantizer.codebook_sizes:
        raise ValueError(
            f"{path}: {tuple(code.indices.shape)} tokens do not fit {code.height} x {code.width} pixels of {name}"
        )


def _compare(result: torch.Tensor, pixels: torch.Tensor) -> dict[str, float | None]:
    psnr, ssim = DatasetPSNR(), ImageSSIM()
    psnr.update(result[None], pixels[None])
    large_enough = min(pixels.shape[1:]) >= ssim.window
    if large_enough:
        ssim.update(result[None], pixels[None])
    return {"psnr": as_number(psnr.compute()), "ssim": as_number(ssim.compute()) if large_enough else None}


def _save_image(image, path: Path) -> str:
    with atomic_file(path) as temporary:
        image.save(temporary)
    return str(path)


def _unique(names: list[str]) -> list[str]:
    """The names, numbered where one comes again, so that no result overwrites another."""
    result: list[str] = []
    for name in names:
        number, candidate = 1, name
        while candidate in result or (number > 1 and candidate in names):
            number += 1
            candidate = f"{name}-{number}"
        result.append(candidate)
    return result
