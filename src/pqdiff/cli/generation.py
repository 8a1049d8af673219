"""Generate images with text-to-image pipelines, one at a time, and say in words what went wrong."""

import contextlib
import dataclasses
import itertools
import re
import time
from collections.abc import Callable, Iterator

import torch

from pqdiff.cli.generated_images import GeneratedImage, ImagesOfModel
from pqdiff.cli.generation_settings import SCHEDULERS, Settings
from pqdiff.cli.scene_verdicts import knows_scenes_only, scene_notes, wrong_attributes
from pqdiff.data.images.reading import to_image, to_pixels
from pqdiff.hub.pipelines import load_pipeline
from pqdiff.pipelines.schedulers import switch_scheduler

_NO_MEMORY = re.compile("out of memory|not enough memory|can(no|')t allocate memory", re.IGNORECASE)


def generate_with_models(
    titles: dict[str, str],
    prompts: list[str],
    seeds: range,
    settings: Settings,
    device: str,
    show: Callable[[str, int, int], None],
) -> tuple[list[ImagesOfModel], list[str]]:
    """Images of each prompt and seed by each model, and notes about them for the user.

    All models are loaded before the first image is generated, so that errors come early.

    Args:
        titles: name (shipped name, folder or Hub id) and short title of each model.
        show: called with the stage, the steps done in it and their number.

    Raises:
        ValueError: if a model cannot be loaded, or cannot generate images with these settings.
    """
    loaded, notes, results = {}, [], []
    for count, name in enumerate(titles):
        show("loading", count, len(titles))
        pipeline = load_pipeline(name, choose_dtype(settings.dtype, device))
        pipeline.set_progress_bar_config(disable=True)
        _set_scheduler(pipeline, settings.scheduler)
        loaded[name] = pipeline, settings.size_for(name, pipeline)
    show("loading", len(titles), len(titles))
    if any(knows_scenes_only(pipeline.tokenizer) for pipeline, _ in loaded.values()):
        notes += scene_notes(prompts)
    done, total = 0, len(titles) * len(prompts) * len(seeds) * settings.steps
    for name, title in titles.items():
        pipeline, size = loaded.pop(name)  # so that its memory is free after its turn
        notes += _notes_on_length(title, pipeline.tokenizer, prompts)
        checkable = knows_scenes_only(pipeline.tokenizer)
        own = dataclasses.replace(settings, guidance=settings.guidance_for(checkable))
        images = []
        with _memory_errors(name, size, device):
            pipeline.to(device)
            if len(titles) > 1:  # otherwise the time of the first model would include what is set up once
                generate_image(pipeline, prompts[0], seeds[0], dataclasses.replace(own, steps=1), size)
            for prompt, seed in itertools.product(prompts, seeds):
                on_step = lambda step, done=done: show("generating", done + step, total)  # noqa: E731
                pixels, seconds, hidden = generate_image(pipeline, prompt, seed, own, size, on_step)
                done += settings.steps
                wrong = wrong_attributes(prompt, pixels) if checkable else None
                images.append(GeneratedImage(prompt, seed, to_image(pixels), seconds, wrong))
                if hidden:
                    notes.append(
                        f"The safety checker of {title} has blacked out the image of {prompt!r}, seed {seed}."
                    )
        factor = pipeline.vae_scale_factor
        latents = (pipeline.unet.config.in_channels, size[0] // factor, size[1] // factor)
        results.append(ImagesOfModel(name, title, latents, own.guidance, images))
    return results, notes


def generate_image(
    pipeline,
    prompt: str,
    seed: int,
    settings: Settings,
    size: tuple[int, int],
    on_step: Callable[[int], None] = lambda step: None,
) -> tuple[torch.Tensor, float, bool]:
    """One image in a batch of its own, so that its pixels depend only on prompt, seed and settings.

    The noise comes from the generator of the CPU on every device.

    Args:
        settings: with a number as guidance.
        size: height and width in pixels.
        on_step: called with the number of steps done.

    Returns:
        uint8 pixels `(3, H, W)`, seconds, and whether a safety checker has blacked out the image.

    Raises:
        ValueError: if the model gives values that are not finite.
    """

    def on_step_end(_pipeline, step, _timestep, _tensors):
        on_step(min(step + 1, settings.steps))
        return {}

    start = time.perf_counter()
    output = pipeline(
        prompt,
        height=size[0],
        width=size[1],
        num_inference_steps=settings.steps,
        guidance_scale=settings.guidance,
        negative_prompt=settings.negative,
        generator=torch.Generator().manual_seed(seed),
        quantize_latents=settings.quantize,
        callback_on_step_end=on_step_end,
        output_type="pt",
    )
    image = output.images[0].float().cpu()
    seconds = time.perf_counter() - start
    if not image.isfinite().all():
        raise ValueError(f"the image has values that are not finite in {pipeline.unet.dtype}: try --dtype float32")
    return to_pixels(image * 2 - 1), seconds, bool(output.nsfw_content_detected and output.nsfw_content_detected[0])


def choose_dtype(name: str | None, device: str) -> torch.dtype:
    """The data type `name` of the models; by default float32 on a CPU and float16 on other devices."""
    if name is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.float16
    return getattr(torch, name)


def _set_scheduler(pipeline, name: str | None) -> None:
    """Give the pipeline another sampler, with the noise schedule and prediction type that it was trained with."""
    if name is not None:
        import diffusers

        pipeline.scheduler = switch_scheduler(pipeline.scheduler, getattr(diffusers, SCHEDULERS[name]))


@contextlib.contextmanager
def _memory_errors(name: str, size: tuple[int, int], device: str) -> Iterator[None]:
    """Turn errors about memory into a ValueError that says what to do."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        raise ValueError(
            f"{name} does not fit into the memory of {device} at {size[0]} x {size[1]} pixels: give a smaller "
            "--height and --width, or --dtype float16"
        ) from None


def _notes_on_length(title: str, tokenizer, prompts: list[str]) -> list[str]:
    limit = tokenizer.model_max_length
    lengths = [len(ids) for ids in tokenizer(prompts).input_ids]
    return [
        f"{title} reads only the first {limit} of the {length} tokens of {prompt!r}."
        for prompt, length in zip(prompts, lengths, strict=True)
        if length > limit
    ]
