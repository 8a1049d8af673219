"""Command from prompts to pictures: generate."""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import typer

from ..checkpoints import BUNDLED_PIPELINES
from ..data.images import IMAGE_SUFFIXES, to_image
from .output import print_json, progress_bar
from .painting import (
    DTYPES,
    SCHEDULERS,
    Settings,
    choose_device,
    choose_dtype,
    memory_errors,
    paint,
    set_scheduler,
    silence_libraries,
)
from .photos import Json
from .picture_report import TITLES, ModelPictures, Picture, facts_of, grid, print_report, titles_of, write_pictures
from .scene_verdicts import knows_scenes_only, scene_notes, wrong_attributes

_DEFAULT_MODEL = "tiny-precise"
_TINY_GUIDANCE = 2.0  # as benchmarks/tiny_suite.py measures them
# Those that ship, in the order of the columns.
_ALL = [name for name in TITLES if name in BUNDLED_PIPELINES]

Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help=f"Shipped name ({', '.join(_ALL)}), folder or Hub id. Repeatable; default: {_DEFAULT_MODEL}, "
        "with --compare all shipped.",
    ),
]
Output = Annotated[
    Path, typer.Option("--output", "-o", help="File for the grid, or a folder for it and every picture.")
]


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT", help="What to paint.", show_default=False)],
    model: Model = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="A column for each model instead of each picture.")
    ] = False,
    number: Annotated[
        int | None, typer.Option("--number", "-n", help="Pictures per prompt; default: 4, to compare 1.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the first picture of each prompt; the next has the next.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps.")] = 25,
    guidance: Annotated[
        float | None,
        typer.Option(help="How much the prompt weighs; up to 1: no guidance. Default: 7.5; 2 for the tiny models."),
    ] = None,
    output: Output = Path("out.png"),
    height: Annotated[int | None, typer.Option(help="In pixels; default: the model's.")] = None,
    width: Annotated[int | None, typer.Option(help="In pixels; default: the model's.")] = None,
    negative: Annotated[str | None, typer.Option(help="What not to paint.")] = None,
    quantize: Annotated[
        bool | None,
        typer.Option(
            "--quantize/--no-quantize", help="Snap latents to codewords (default: where the latents say all of them)."
        ),
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help=f"{', '.join(SCHEDULERS)}; default: the model's.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps ...; default: what is there.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(DTYPES)}; default: float32 on a CPU, else float16.")
    ] = None,
    json: Json = False,
) -> None:
    """Paint prompts; write a labelled grid and print the seconds per picture, and whether scenes came out right."""
    names = model or (_ALL if compare else [_DEFAULT_MODEL])
    compare = compare or len(names) > 1
    number = number if number is not None else 1 if compare else 4
    _check_request(prompts, names, number, seed)
    as_folder = _check_output(output)
    device = choose_device(device)
    settings = Settings(steps, 7.5 if guidance is None else guidance, negative, height, width, quantize, scheduler)
    dtype = choose_dtype(dtype, device)
    titles, notes, done, models = titles_of(names), [], 0, []
    silence_libraries(quiet=json)
    with progress_bar(quiet=json) as show:
        loaded = dict(_load(names, dtype, settings, show))
        if any(knows_scenes_only(pipeline.tokenizer) for pipeline, _ in loaded.values()):
            notes += scene_notes(prompts)
        total = len(names) * len(prompts) * number * steps
        for name in names:
            pipeline, size = loaded.pop(name)  # which frees its memory after its turn
            notes += _notes_on_length(titles[name], pipeline.tokenizer, prompts)
            checkable = knows_scenes_only(pipeline.tokenizer)
            if guidance is None:
                settings = dataclasses.replace(settings, guidance=_TINY_GUIDANCE if checkable else 7.5)
            pictures = []
            with memory_errors(name, size, device):
                pipeline.to(device)
                if len(names) > 1:  # or the first model would pay for what is set up once
                    paint(pipeline, prompts[0], seed, dataclasses.replace(settings, steps=1), size, lambda step: None)
                for prompt, each in itertools.product(prompts, range(seed, seed + number)):
                    on_step = lambda step, done=done: show("painting", done + step, total)  # noqa: E731
                    pixels, seconds, hidden = paint(pipeline, prompt, each, settings, size, on_step)
                    done += steps
                    wrong = wrong_attributes(prompt, pixels) if checkable else None
                    pictures.append(Picture(prompt, each, to_image(pixels), seconds, wrong))
                    if hidden:
                        notes.append(f"The safety checker of {titles[name]} blacked out {prompt!r}, seed {each}.")
            factor = pipeline.vae_scale_factor
            latents = (pipeline.unet.config.in_channels, size[0] // factor, size[1] // factor)
            models.append(ModelPictures(name, titles[name], latents, settings.guidance, pictures))

    files = write_pictures(output, as_folder, grid(prompts, models, compare), prompts, models)
    if json:
        how = {
            "steps": steps,
            "device": device,
            "dtype": str(dtype).removeprefix("torch."),
        }
        print_json({**how, **facts_of(models), "notes": notes, "files": files})
        return
    print_report(prompts, models, f"{steps} step{'s' * (steps > 1)} on {device}")
    print("\n".join([*notes, "Written:", *(f"  {file}" for file in files)]))


def _check_request(prompts: list[str], names: list[str], number: int, seed: int) -> None:
    for place, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            raise ValueError(f"prompt {place} is empty: say what to paint")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"model ({name}) is given twice")
    if number < 1:
        raise ValueError(f"number ({number}) of pictures must be at least 1")
    if seed < 0 or seed + number > 2**63:
        raise ValueError(f"seed ({seed}) must be from 0 to 2^63 less the number of pictures")


def _check_output(output: Path) -> bool:
    """Whether `output` is to be a folder; an error before the work if it cannot be written."""
    as_folder = output.is_dir() or not output.suffix
    if not as_folder and output.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(f"output ({output}) must be a folder or end in one of {', '.join(IMAGE_SUFFIXES)}")
    place = output if as_folder else output.parent
    while not place.exists():
        place = place.parent
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise ValueError(f"output ({output}) cannot be written: {place}: {error.strerror}") from None
    return as_folder


def _load(names: list[str], dtype: torch.dtype, settings: Settings, show) -> Iterator[tuple[str, tuple]]:
    """Name, pipeline and size of its pictures. All are loaded before one paints, so that errors come early."""
    from ..hub.pipelines import load_pipeline  # slow, and transformers speaks unless it was silenced

    for count, name in enumerate(names):
        show("loading", count, len(names))
        pipeline = load_pipeline(name, dtype)
        pipeline.set_progress_bar_config(disable=True)
        set_scheduler(pipeline, settings.scheduler)
        yield name, (pipeline, settings.size_for(name, pipeline))
    show("loading", len(names), len(names))


def _notes_on_length(title: str, tokenizer, prompts: list[str]) -> list[str]:
    limit = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(prompts).input_ids]
    return [
        f"{title} reads only the first {limit} of the {length} tokens of {prompt!r}."
        for prompt, length in zip(prompts, lengths, strict=True)
        if length > limit
    ]
