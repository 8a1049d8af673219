"""Images generated from fixed prompts while a diffusion model is trained, always from the same noise."""

import argparse
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pqdiff.data.images.grid import grid_image
from pqdiff.training.options import Options
from pqdiff.training.session import Session


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ValidationOptions`."""
    group = parser.add_argument_group("validation")
    group.add_argument("--validation_prompts", nargs="+", default=[], help="prompts to generate images from")
    group.add_argument("--validation_steps", type=int, default=1000, help="optimizer steps between grids; 0: never")
    group.add_argument("--inference_steps", type=int, default=25, help="denoising steps per image")
    group.add_argument("--guidance_scale", type=float, default=4.0, help="scale of classifier-free guidance")


@dataclass(frozen=True)
class ValidationOptions(Options):
    """What is generated while a diffusion model is trained.

    Attributes:
        validation_prompts: prompts; without any, nothing is generated.
        validation_steps: optimizer steps between grids; 0 for none while training.
        inference_steps: denoising steps per image.
        guidance_scale: scale of classifier-free guidance.
    """

    validation_prompts: tuple[str, ...] | list[str] = ()
    validation_steps: int = 1000
    inference_steps: int = 25
    guidance_scale: float = 4.0


class PromptValidation:
    """Generates a grid of images at every `validation_steps`-th step, with the EMA weights if there are any.

    The grid is OUTPUT_DIR/validation/step-N.png and goes to trackers that take images. The random states of training do
    not change.

    Args:
        session: run that is validated.
        options: what to generate.
        pipeline: pipeline of the models in training. The EMA models of the session take the places of components of the
            same names while images are generated.
    """

    def __init__(self, session: Session, options: ValidationOptions, pipeline):
        self.session, self.options, self.pipeline = session, options, pipeline

    def __call__(self, step: int) -> None:
        """Generate the grid if it is due after `step` steps."""
        options, session = self.options, self.session
        due = options.validation_prompts and options.validation_steps and step % options.validation_steps == 0
        if not due or not session.accelerator.is_main_process:
            return
        images = self.generate()
        folder = session.folder.claim("validation")
        folder.mkdir(exist_ok=True)
        self.grid(images).save(folder / f"step-{step:08d}.png")
        for tracker in session.accelerator.trackers:
            if not hasattr(tracker, "log_images"):
                continue
            try:
                if tracker.name == "tensorboard":
                    stacked = np.stack([np.asarray(image) for image in images])  # (B, H, W, 3)
                    tracker.log_images({"validation": stacked}, step=step, dataformats="NHWC")
                else:
                    tracker.log_images({"validation": images}, step=step)
            except Exception as error:  # a tracker may raise anything, and the run must go on
                session.say(f"{tracker.name} did not take the validation images ({type(error).__name__}: {error})")

    def grid(self, images: list[Image.Image]) -> Image.Image:
        """One image with a row for each prompt."""
        return grid_image(
            [(prompt, [image]) for prompt, image in zip(self.options.validation_prompts, images, strict=True)]
        )

    @torch.no_grad()
    def generate(self) -> list[Image.Image]:
        """One image per prompt; prompt number i starts from noise of seed i."""
        pipeline, prompts, ema = self.pipeline, list(self.options.validation_prompts), self.session.ema
        if not prompts:
            return []
        trained = {name: getattr(pipeline, name) for name in ema}
        modes = {part: part.training for part in pipeline.components.values() if isinstance(part, torch.nn.Module)}
        for part in modes:
            part.eval()
        for name, each in ema.items():
            pipeline.register_modules(**{name: each.model.to(self.session.device)})
        pipeline.set_progress_bar_config(disable=True)
        try:
            return pipeline(
                prompts,
                num_inference_steps=self.options.inference_steps,
                guidance_scale=self.options.guidance_scale,
                generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
            ).images
        finally:
            pipeline.register_modules(**trained)
            for part, training in modes.items():
                part.train(training)
