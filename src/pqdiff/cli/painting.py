"""Prompts to pictures with a pipeline: settings that are checked, one picture at a time, and what went wrong in words."""

import contextlib
import math
import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from ..data.images import to_pixels

SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_SIDE_MULTIPLE = 8  # what diffusers asks of the sides, whatever the autoencoder
_NO_MEMORY = re.compile("out of memory|not enough memory|can(no|')t allocate memory", re.IGNORECASE)


@dataclass(frozen=True)
class Settings:
    """How every picture is painted.

    Attributes:
        steps: denoising steps.
        guidance: scale of classifier-free guidance; up to 1 there is none.
        negative: what the guidance leads away from, or None.
        height: in pixels, or None for the model's own.
        width: likewise.
        quantize: whether latents are snapped to codewords before they are decoded; None as the pipeline does by itself.
        scheduler: a key of `SCHEDULERS`, or None for the model's own.

    Raises:
        ValueError: for values that no model can take.
    """

    steps: int
    guidance: float
    negative: str | None
    height: int | None
    width: int | None
    quantize: bool | None
    scheduler: str | None

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps ({self.steps}) must be at least 1")
        if not math.isfinite(self.guidance):
            raise ValueError(f"guidance ({self.guidance}) must be a finite number")
        if self.negative is not None and self.guidance <= 1:
            raise ValueError(f"guidance ({self.guidance:g}) must be above 1 for a negative prompt to have an effect")
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler ({self.scheduler}) must be one of {', '.join(SCHEDULERS)}")

    def size_for(self, name: str, pipeline) -> tuple[int, int]:
        """Height and width of the pictures of a pipeline; ValueError if it cannot paint them."""
        factor = pipeline.vae_scale_factor
        sample = pipeline.unet.config.sample_size
        own = [side * factor for side in (sample if isinstance(sample, (list, tuple)) else (sample, sample))]
        sides = {
            "height": own[0] if self.height is None else self.height,
            "width": own[1] if self.width is None else self.width,
        }
        multiple = math.lcm(_SIDE_MULTIPLE, factor)
        for side, length in sides.items():
            if length < 1 or length % multiple:
                raise ValueError(f"{side} ({length}) must be a positive multiple of {multiple} for {name}")
        return sides["height"], sides["width"]


def choose_device(name: str | None) -> str:
    """`name`, or the accelerator that is there, or the CPU; ValueError for one that is not."""
    if name is None:
        return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"device ({name}) cannot be used: {reason[:200]}") from None
    return name


def choose_dtype(name: str | None, device: str) -> torch.dtype:
    """The data type of the models; default: float32 on a CPU, float16 elsewhere."""
    if name is None:
        return torch.float32 if torch.device(device).type == "cpu" else torch.float16
    if name not in DTYPES:
        raise ValueError(f"dtype ({name}) must be one of {', '.join(DTYPES)}")
    return DTYPES[name]


def set_scheduler(pipeline, name: str | None) -> None:
    """Another sampler for the noise schedule and the prediction type that the pipeline was trained with."""
    if name is not None:
        import diffusers

        pipeline.scheduler = getattr(diffusers, SCHEDULERS[name]).from_config(pipeline.scheduler.config)


def paint(
    pipeline, prompt: str, seed: int, settings: Settings, size: tuple[int, int], on_step: Callable[[int], None]
) -> tuple[torch.Tensor, float, bool]:
    """One picture, alone, so that it depends on nothing but prompt, seed and settings to the last bit.

    The noise comes from the CPU's generator on every device.

    Args:
        size: height and width in pixels.
        on_step: called with the number of steps done.

    Returns:
        uint8 pixels `(3, H, W)`, seconds, and whether a safety checker blacked the picture out.

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
        raise ValueError(f"the picture has values that are no numbers in {pipeline.unet.dtype}: try --dtype float32")
    return to_pixels(image * 2 - 1), seconds, bool(output.nsfw_content_detected and output.nsfw_content_detected[0])


@contextlib.contextmanager
def memory_errors(name: str, size: tuple[int, int], device: str) -> Iterator[None]:
    """A ValueError that says what to do where memory ends."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _NO_MEMORY.search(str(error)):
            raise
        raise ValueError(
            f"{name} does not fit into the memory of {device} at {size[0]} x {size[1]} pixels: give a smaller "
            "--height and --width, or --dtype float16"
        ) from None


def silence_libraries(quiet: bool) -> None:
    """Stop what libraries say about themselves when pipelines are imported and loaded.

    Args:
        quiet: whether downloads shall show no progress either.
    """
    from huggingface_hub.utils import disable_progress_bars
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub_logging.set_verbosity_error()
    if quiet or not sys.stderr.isatty():
        disable_progress_bars()
