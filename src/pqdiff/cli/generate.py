"""`pqdiff generate`: prompts to images."""

import tempfile
from pathlib import Path
from typing import Annotated

import typer

from pqdiff.checkpoints import BUNDLED_PIPELINES
from pqdiff.cli.generation_settings import DTYPES, SCHEDULERS, TITLES, Settings, check_text
from pqdiff.cli.options import Force, Json

_DEFAULT_MODEL = "tiny-precise"
_IMAGE_SUFFIXES = (
    ".jpg",
    ".jpeg",
    ".png",
    ".webp",
    ".bmp",
    ".tif",
    ".tiff",
    ".gif",
)  # what the grid can be written as
_SHIPPED = [name for name in TITLES if name in BUNDLED_PIPELINES]


def generate(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="What the images should show.", show_default=False)
    ],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-m",
            help=f"Name of a shipped pipeline ({', '.join(_SHIPPED)}), folder or Hub id. Can be repeated. "
            f"Default: {_DEFAULT_MODEL}, or all shipped ones with --compare.",
        ),
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Give each model a column of the grid, instead of each image.")
    ] = False,
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="Images per prompt. Default: 4, or 1 to compare models.")
    ] = None,
    seed: Annotated[
        int, typer.Option(help="Seed of the first image of each prompt. The next image has the next seed.")
    ] = 0,
    steps: Annotated[int, typer.Option(help="Number of denoising steps.")] = 25,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="Scale of classifier-free guidance. 1 or less means none. Default: 7.5, or 2 for the tiny models."
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File for the grid, or folder for the grid and every image.")
    ] = Path("out.png"),
    height: Annotated[int | None, typer.Option(help="Height in pixels. Default: that of the model.")] = None,
    width: Annotated[int | None, typer.Option(help="Width in pixels. Default: that of the model.")] = None,
    negative: Annotated[str | None, typer.Option(help="What the images should not show.")] = None,
    quantize: Annotated[
        bool | None,
        typer.Option(
            "--quantize/--no-quantize",
            help="Snap latents to codewords before they are decoded. Default: only for tokenizers whose codewords "
            "hold more coefficients than the latents show.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(SCHEDULERS)}. Default: that of the model.")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="For example cpu, cuda, cuda:1 or mps. Default: an accelerator, if there is one."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"One of {', '.join(DTYPES)}. Default: float32 on a CPU, otherwise float16.")
    ] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Generate images from prompts. Writes a labelled grid and prints how long an image takes.

    Where a prompt describes a scene of the tiny models, it also says whether the image shows that scene.
    """
    names = model or (_SHIPPED if compare else [_DEFAULT_MODEL])
    compare = compare or len(names) > 1
    number = number if number is not None else 1 if compare else 4
    _check_request(prompts, names, number, seed)
    as_folder = _check_output(output)
    settings = Settings(steps, guidance, negative, height, width, quantize, scheduler, dtype)

    from pqdiff.cli.library_messages import silence_libraries

    silence_libraries(quiet=json)
    from pqdiff.cli.generated_images import facts_of, titles_of
    from pqdiff.cli.generation import choose_dtype, generate_with_models
    from pqdiff.cli.generation_report import grid, print_report, write_images
    from pqdiff.cli.image_files import generated_files
    from pqdiff.cli.output import print_json, print_lines, progress_bar
    from pqdiff.data.files import check_new_file
    from pqdiff.devices import choose_device

    titles, seeds = titles_of(names), range(seed, seed + number)
    files = generated_files(output, as_folder, prompts, list(titles.values()), seeds)
    for file in files:
        check_new_file(file, force)
    device = choose_device(device)
    with progress_bar(quiet=json) as show:
        models, notes = generate_with_models(titles, prompts, seeds, settings, device, show)
    written = write_images(files, grid(prompts, models, compare), models)
    if json:
        how = {"steps": steps, "device": device, "dtype": str(choose_dtype(dtype, device)).removeprefix("torch.")}
        print_json({**how, **facts_of(models), "notes": notes, "files": written})
        return
    print_report(prompts, models, f"{steps} step{'s' * (steps > 1)} on {device}")
    print_lines(*notes, "Written:", *(f"  {file}" for file in written))


def _check_request(prompts: list[str], names: list[str], number: int, seed: int) -> None:
    for place, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise ValueError(f"prompt {place} is empty: say what the image should show")
        check_text(f"prompt {place}", prompt)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"model ({name}) is given twice")
    if not 1 <= number <= 10_000:
        raise ValueError(f"number ({number}) of images must be at least 1 and at most 10000")
    if seed < 0 or seed + number > 2**63:
        raise ValueError(f"seed ({seed}) must be at least 0, and at most 2^63 minus the number of images")


def _check_output(output: Path) -> bool:
    """Whether `output` is to be a folder.

    Raises:
        ValueError: if it cannot be written.
    """
    as_folder = output.is_dir() or not output.suffix
    if not as_folder and output.suffix.lower() not in _IMAGE_SUFFIXES:
        raise ValueError(f"output ({output}) must be a folder or end in one of {', '.join(_IMAGE_SUFFIXES)}")
    place = output if as_folder else output.parent
    while not place.exists():
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"output ({output}) cannot be written: {place}: {error.strerror}") from None
    return as_folder
