"""`pqdiff convert-vae`: a discrete tokenizer from a Gaussian autoencoder, without training."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from pqdiff.cli.options import LARGEST_SIDE, ImageSource, Json, Split

_LIMITS = (
    "The networks and the license are those of the autoencoder. Its latents were not trained to be discrete: compare the "
    "reconstructions with its own."
)


def convert_vae(
    vae: Annotated[
        str,
        typer.Argument(
            metavar="VAE", help="Folder or Hub id of an AutoencoderKL or of a pipeline.", show_default=False
        ),
    ],
    source: ImageSource,
    output: Annotated[Path, typer.Option("--output", "-o", help="New folder for the tokenizer.")],
    method: Annotated[
        Literal["gaussian", "token_bridge"],
        typer.Option(help="Gaussian Quant, or bins of equal probability for each channel (TokenBridge)."),
    ] = "gaussian",
    codebook_size: Annotated[
        int | None,
        typer.Option(
            help="Codewords of Gaussian Quant, a power of 2 (default: what the latents need), or bins (64).", min=2
        ),
    ] = None,
    codebook_dim: Annotated[
        int, typer.Option(help="Channels that one codeword of Gaussian Quant codes.", min=1, max=2**12)
    ] = 1,
    num_images: Annotated[int, typer.Option(help="At most so many images are measured on.", min=1, max=2**31)] = 100,
    resolution: Annotated[
        int, typer.Option(help="Side of the center crops in pixels.", min=8, max=LARGEST_SIDE)
    ] = 256,
    license: Annotated[str, typer.Option(help="License of the autoencoder, for the card.")] = "other",
    split: Split = "train",
    force: Annotated[bool, typer.Option("--force", help="Convert although the codebook is too small.")] = False,
    json: Json = False,
) -> None:
    """Make a discrete tokenizer of a Gaussian autoencoder, without training."""
    import itertools
    import math

    from pqdiff.cli.library_messages import silence_libraries
    from pqdiff.cli.output import print_json, print_lines
    from pqdiff.data.captions.captioned import iterate_images
    from pqdiff.data.files import atomic_folder, check_new_folder
    from pqdiff.data.images.crops import resize_and_crop
    from pqdiff.data.images.reading import to_tensor
    from pqdiff.fitting.gaussian_vae import check_gaussian, convert_gaussian_vae, measure_posteriors
    from pqdiff.hub.cards import render_tokenizer_card
    from pqdiff.models.fingerprint import fingerprint
    from pqdiff.models.loading import downsample_factor, load_autoencoder

    check_new_folder(output)
    silence_libraries(quiet=json)
    model = load_autoencoder(vae)
    check_gaussian(model)
    factor, channels = downsample_factor(model), model.config.latent_channels
    if resolution % factor:
        raise ValueError(f"--resolution ({resolution}) must be divisible by F = {factor} of the autoencoder")
    if channels % codebook_dim:
        raise ValueError(f"--codebook-dim ({codebook_dim}) must divide the {channels} latent channels")
    some = itertools.islice(iterate_images(source, split), num_images)
    images = [to_tensor(resize_and_crop(image, resolution)) for image in some]
    posteriors = measure_posteriors(model, images)
    groups = posteriors.bits_of_groups(codebook_dim)
    if method == "gaussian":
        size = codebook_size or 2 ** min(16, math.ceil(float(groups.max())))
        config = {"codebook_size": size, "codebook_dim": codebook_dim}
    else:
        config = {"num_bins": codebook_size or 64}
    tokenizer = convert_gaussian_vae(model, images, method, config, force, posteriors)
    with atomic_folder(output) as temporary:
        tokenizer.save_pretrained(temporary)
        render_tokenizer_card(
            tokenizer,
            name=output.name,
            load=f'"{output.name}"',
            license=license,
            summary=f"A {type(model).__name__} turned into a discrete tokenizer without training.",
            training=f"Converted by `pqdiff convert-vae` ({method}), measured on {len(images)} images of {resolution} px.",
            evaluation=None,
            limits=_LIMITS,
        ).save(temporary / "README.md")
    least, mean, most = (round(float(bits), 2) for bits in (groups.min(), groups.mean(), groups.max()))
    if json:
        return print_json(
            {
                "folder": str(output),
                "fingerprint": fingerprint(tokenizer),
                "bits_per_pixel": tokenizer.bits_per_pixel,
                "bits_per_group": {"least": least, "mean": mean, "most": most},
            }
        )
    print_lines(
        f"Groups of {codebook_dim} channels carry {least} to {most} bits, {mean} on average.",
        f"Written: {output} ({tokenizer.bits_per_pixel:g} bits per pixel)",
    )
