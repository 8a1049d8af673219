"""What a user may ask of `pqdiff generate`, checked before torch is imported."""

import math
from dataclasses import dataclass

# Shipped pipelines and their short names, in the order of the columns of a comparison.
TITLES = {"tiny-base": "base", "tiny-precise": "Precise", "tiny-quick": "Quick", "tiny-hr": "HR"}
SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
DTYPES = ("float32", "float16", "bfloat16")

_MOST_STEPS = 10_000  # schedulers make a table of them
_SIDE_MULTIPLE = 8  # diffusers wants sides divisible by 8, whatever the autoencoder
_GUIDANCE = 7.5
_SCENE_GUIDANCE = 2.0  # with which benchmarks/tiny_suite.py measures the tiny models


def check_text(name: str, text: str) -> None:
    """Raise ValueError for a text with bytes that are not UTF-8: no tokenizer takes them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} ({text!r}) is not UTF-8 text") from None


@dataclass(frozen=True)
class Settings:
    """How every image is generated.

    Attributes:
        steps: number of denoising steps.
        guidance: scale of classifier-free guidance; 1 or less means none. None stands for the default of the model.
        negative: prompt that the guidance leads away from, or None.
        height: of the images in pixels; None stands for the default of the model.
        width: likewise.
        quantize: whether latents are snapped to codewords before they are decoded; None leaves it to the pipeline.
        scheduler: a key of `SCHEDULERS`; None stands for the scheduler of the model.
        dtype: one of `DTYPES`; None stands for float32 on a CPU and float16 on other devices.

    Raises:
        ValueError: for values that no model can take.
    """

    steps: int
    guidance: float | None
    negative: str | None
    height: int | None
    width: int | None
    quantize: bool | None
    scheduler: str | None
    dtype: str | None

    def __post_init__(self):
        if not 1 <= self.steps <= _MOST_STEPS:
            raise ValueError(f"steps ({self.steps}) must be at least 1 and at most {_MOST_STEPS}")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise ValueError(f"guidance ({self.guidance}) must be a finite number")
        if self.negative is not None and self.guidance is not None and self.guidance <= 1:
            raise ValueError(f"guidance ({self.guidance:g}) must be above 1 for a negative prompt to have an effect")
        check_text("negative", self.negative or "")
        for name, allowed in (("scheduler", SCHEDULERS), ("dtype", DTYPES)):
            value = getattr(self, name)
            if value is not None and value not in allowed:
                raise ValueError(f"{name} ({value}) must be one of {', '.join(allowed)}")

    def guidance_for(self, knows_scenes_only: bool) -> float:
        """The scale of the guidance for a model, which is smaller for the tiny models of synthetic scenes."""
        if self.guidance is not None:
            return self.guidance
        return _SCENE_GUIDANCE if knows_scenes_only else _GUIDANCE

    def size_for(self, name: str, pipeline) -> tuple[int, int]:
        """Height and width of the images of a pipeline.

        Raises:
            ValueError: if the pipeline cannot generate images of that size.
        """
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
