"""`pqdiff fit`: make tokenizers from images, without gradients."""

from pathlib import Path
from typing import Annotated

import typer

from pqdiff.cli.options import LARGEST_SIDE, ImageSource, Json, Split
from pqdiff.models.presets import PRESETS, closed_form_config


def fit(
    source: ImageSource,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for the model; with several presets, for one folder each.")
    ],
    preset: Annotated[
        list[str],
        typer.Option("--preset", "-p", help=f"{', '.join(PRESETS)}, or any other of this form. Can be repeated."),
    ],
    resolution: Annotated[
        int,
        typer.Option(help="The shorter side of each image is resized to this many pixels.", min=8, max=LARGEST_SIDE),
    ] = 256,
    hidden_channels: Annotated[
        int | None,
        typer.Option(help="Coefficients per patch that only the codewords hold. Default: that of the preset."),
    ] = None,
    class_bases: Annotated[
        int,
        typer.Option(
            help="Number of bases for classes of patches, e.g. 16: better images at the same rate. 0 means no classes.",
            min=0,
            max=2**16,
        ),
    ] = 0,
    visibility: Annotated[
        float,
        typer.Option(
            help="Weigh errors by this power of how much they are seen, e.g. 0.5: higher SSIMULACRA2, lower PSNR. 0 means "
            "squared error."
        ),
    ] = 0.0,
    overlap: Annotated[
        int,
        typer.Option(
            help="Mix so many pixels across each border between patches before patches are cut, e.g. F: smoother borders, "
            "better images at the same rate. Even, at most F; 0 means patches that know no neighbors."
        ),
    ] = 0,
    on_latents: Annotated[
        str | None,
        typer.Option(
            help="Folder or Hub id of an AutoencoderKL: quantize its latents instead of pixels. The preset must have its F "
            "and its latent channels."
        ),
    ] = None,
    scaling_exponent: Annotated[
        float, typer.Option(help="0 means one scale for all latent channels, 1 means unit variance for each.")
    ] = 0.0,
    exclude_every: Annotated[
        int,
        typer.Option(help="Leave out every n-th image, in the order of the names, to measure on. 0 means none."),
    ] = 0,
    split: Split = "train",
    seed: Annotated[
        int, typer.Option(help="The same seed, images and machine give the same model.", min=0, max=2**63 - 1)
    ] = 0,
    json: Json = False,
) -> None:
    """Fit tokenizers to images in minutes, without a GPU and without gradients."""
    for name in preset:
        # Wrong values stop the command before the work starts.
        closed_form_config(name, hidden_channels, class_bases, visibility, overlap)
    if on_latents and (hidden_channels or class_bases or scaling_exponent or visibility or overlap):
        raise ValueError(
            "--on-latents has neither --hidden-channels, nor --class-bases, nor --scaling-exponent, nor --visibility, nor "
            "--overlap"
        )

    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import print_json, print_lines, progress_bar
    from pqdiff.data.captions.captioned import iterate_images
    from pqdiff.data.files import atomic_folder, check_new_folder
    from pqdiff.data.images.crops import resize_to_cover
    from pqdiff.data.images.reading import to_tensor
    from pqdiff.fitting.closed_form import fit_closed_form
    from pqdiff.fitting.gaussian_vae import fit_preset_on_latents
    from pqdiff.hub.closed_form_card import write_closed_form_card
    from pqdiff.models.fingerprint import fingerprint

    folders = [output if len(preset) == 1 else output / f"pqgan-{name}" for name in preset]
    for folder in folders:
        check_new_folder(folder)  # so does a folder that is in use
    silence_libraries(quiet=json)
    fitted = []
    for name, folder in zip(preset, folders, strict=True):
        with atomic_folder(folder) as temporary, progress_bar(quiet=json) as show:
            images = (
                to_tensor(resize_to_cover(image, resolution))
                for i, image in enumerate(iterate_images(source, split))
                if not (exclude_every and i % exclude_every == 0)
            )
            on_step = lambda stage, step, steps, name=name, show=show: show(f"{name}: {stage}", step, steps)  # noqa: E731
            shape = {
                "hidden_channels": hidden_channels,
                "class_bases": class_bases,
                "visibility": visibility,
                "overlap": overlap,
                "scaling_exponent": scaling_exponent,
            }
            if on_latents:
                model = fit_preset_on_latents(on_latents, images, name, seed)
            else:
                model = fit_closed_form(images, name, **shape, seed=seed, on_step=on_step)
            model.save_pretrained(temporary)
            command = f"pqdiff fit {Path(source).name} --preset {name} --resolution {resolution} --seed {seed}"
            if hidden_channels is not None:
                command += f" --hidden-channels {hidden_channels}"
            for option in ("class_bases", "visibility", "overlap", "scaling_exponent"):
                command += f" --{option.replace('_', '-')} {shape[option]:g}" * bool(shape[option])
            command += f" --exclude-every {exclude_every}" * bool(exclude_every)
            command += f" --on-latents {Path(on_latents).name}" if on_latents else ""
            load, training = f'"{folder.name}"', f"Fitted by `{command}`."
            write_closed_form_card(model, temporary, folder.name, training, load, visibility=visibility)
        fitted.append({"preset": name, "folder": str(folder), "fingerprint": fingerprint(model)})
    if json:
        print_json({"fitted": fitted})
    else:
        print_lines("Written:", *(f"  {row['folder']}" for row in fitted))
