"""Pictures of fixed prompts while training goes on, always from the same noise."""

import argparse

import numpy as np
import torch
from PIL import Image

from ..data.grid import grid_image
from .session import Session


def add_validation_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `paint_validation` reads."""
    group = parser.add_argument_group("validation")
    group.add_argument("--validation_prompts", nargs="+", default=[], help="painted every --validation_steps")
    group.add_argument("--validation_steps", type=int, default=1000, help="optimizer steps between grids; 0: never")
    group.add_argument("--inference_steps", type=int, default=25, help="of the pipeline, per picture")
    group.add_argument("--guidance_scale", type=float, default=4.0, help="of the pipeline")


def paint_validation(session: Session, pipeline) -> None:
    """At every `validation_steps`-th step: a grid of the prompts, by the averages where there are some, as
    OUTPUT_DIR/validation/step-N.png and to the trackers. Training's random states do not notice."""
    args = session.args
    due = args.validation_prompts and args.validation_steps and session.step % args.validation_steps == 0
    if not due or not session.accelerator.is_main_process:
        return
    pictures = paint(session, pipeline, args.validation_prompts)
    folder = session.output_dir / "validation"
    folder.mkdir(parents=True, exist_ok=True)
    grid_image([(prompt, [picture]) for prompt, picture in zip(args.validation_prompts, pictures, strict=True)]).save(
        folder / f"step-{session.step:08d}.png"
    )
    for tracker in session.accelerator.trackers:
        if not hasattr(tracker, "log_images"):
            continue
        try:
            if tracker.name == "tensorboard":
                stacked = np.stack([np.asarray(picture) for picture in pictures])  # (B, H, W, 3)
                tracker.log_images({"validation": stacked}, step=session.step, dataformats="NHWC")
            else:
                tracker.log_images({"validation": pictures}, step=session.step)
        except Exception as error:  # whatever a tracker raises: the run is worth more than its pictures
            session.say(f"{tracker.name} did not take the validation pictures ({type(error).__name__}: {error})")


@torch.no_grad()
def paint(session: Session, pipeline, prompts: list[str]) -> list[Image.Image]:
    """One picture per prompt, prompt i from noise of seed i."""
    args, device = session.args, session.accelerator.device
    swapped = {name: getattr(pipeline, name) for name in session.averages}
    modes = {part: part.training for part in pipeline.components.values() if isinstance(part, torch.nn.Module)}
    for part in modes:
        part.eval()
    for name, ema in session.averages.items():
        pipeline.register_modules(**{name: ema.average.to(device)})
    pipeline.set_progress_bar_config(disable=True)
    try:
        return pipeline(
            list(prompts),
            num_inference_steps=args.inference_steps,
            guidance_scale=args.guidance_scale,
            generator=[torch.Generator().manual_seed(i) for i in range(len(prompts))],
        ).images
    finally:
        pipeline.register_modules(**swapped)
        for part, training in modes.items():
            part.train(training)
