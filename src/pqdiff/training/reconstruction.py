"""Reconstructions of fixed images while an autoencoder is trained: numbers, and originals beside results."""

import argparse
import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from PIL import Image

from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.grid import ERROR_GAIN, error_map, grid_image
from pqdiff.data.images.reading import normalize, to_image, to_pixels, to_tensor
from pqdiff.losses import PerceptualLoss
from pqdiff.metrics.protocol import ReconstructionMetrics
from pqdiff.models.autoencoder_pq import AutoencoderPQ
from pqdiff.training.log import cut_lines
from pqdiff.training.options import Options
from pqdiff.training.session import Session

_ROWS = 6  # images that are shown
_POOR_USE = 0.5  # as a part of the codewords that the images could use


def add_reconstruction_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `ReconstructionOptions`, apart from `--resolution`, which belongs to the data."""
    group = parser.add_argument_group("validation")
    group.add_argument("--validation_steps", type=int, default=1000, help="optimizer steps between; 0: never")
    group.add_argument("--validation_images", type=int, default=64, help="at most so many, from all over the data")
    group.add_argument("--validation_resolution", type=int, help="side of the center crop; default: --resolution")


@dataclass(frozen=True)
class ReconstructionOptions(Options):
    """What is measured while an autoencoder is trained.

    Attributes:
        validation_steps: optimizer steps between validations; 0 for none.
        validation_images: at most so many images, from all over the data.
        validation_resolution: side in pixels of the center crop; None for that of training.
        resolution: side in pixels of the training crops.
    """

    validation_steps: int = 1000
    validation_images: int = 64
    validation_resolution: int | None = None
    resolution: int = 256


class ReconstructionValidation:
    """PSNR, SSIM, use of the codebooks and, if there is one, a perceptual distance on images that are not trained on.

    The protocol is that of all numbers of this project: shorter side by Lanczos, center crop, 8-bit output. The images are
    shared by all ranks. Each result is a line of OUTPUT_DIR/validation/metrics.jsonl and an image
    OUTPUT_DIR/validation/step-N.png with originals, reconstructions and errors. The random states of training do not
    change.

    Attributes:
        values: last numbers by name; empty before the first validation.
        count: number of images.
        resolution: side in pixels of the images.

    Args:
        session: run that is validated.
        options: when and at which size.
        model: unwrapped model to measure; the EMA model if there is one.
        images: RGB images.
        perceptual: that of the loss, or None.

    Raises:
        ValueError: if there are no images.
    """

    def __init__(
        self,
        session: Session,
        options: ReconstructionOptions,
        model: AutoencoderPQ,
        images: Iterable[Image.Image],
        perceptual: PerceptualLoss | None = None,
    ):
        self.session, self.options, self.model = session, options, model
        self.distances = {perceptual.name: perceptual} if perceptual is not None else {}
        self.resolution = options.validation_resolution or options.resolution
        pixels = [to_tensor(resize_and_crop(image, self.resolution)) for image in images]
        if not pixels:
            raise ValueError("--validation_images (0) must be at least 1; use --validation_steps 0 for no validation")
        self.count = len(pixels)
        self.pixels = pixels[session.layout.rank :: session.layout.processes]
        self.values: dict[str, float | None] = {}
        self._warned = False

    def __call__(self, step: int) -> None:
        """Measure if it is due after `step` steps: at the last step and at every so many. All ranks must call it."""
        every = self.options.validation_steps
        if every and (step % every == 0 or step == self.session.total_steps):
            self.measure(step)

    @torch.no_grad()
    def measure(self, step: int) -> None:
        """Measure the model after `step` steps; all ranks must call it."""
        model, device, rows = self.model, self.session.device, []
        metrics = ReconstructionMetrics(model.quantizer.codebook_sizes, self.distances).to(device)
        training = model.training
        model.eval()
        for pixels in self.pixels:
            pixels = pixels[None].to(device)
            indices = model.encode_to_indices(normalize(pixels))
            result = to_pixels(model.decode_from_indices(indices).sample)
            metrics.update(pixels, result, indices)
            if len(rows) < _ROWS:
                rows.append((pixels[0].cpu(), result[0].cpu()))
        model.train(training)
        positions = torch.as_tensor(metrics["tokens"].num_positions, device=device)
        if self.session.layout.processes > 1:
            positions = self.session.accelerator.reduce(positions, "sum")
        values = metrics.compute()
        self._warn(values["codebook_utilization"], int(positions), max(model.quantizer.codebook_sizes))
        self._write(values, rows, step)
        self.values = values

    def _warn(self, utilization: float, positions: int, size: int) -> None:
        if utilization < _POOR_USE * min(1, positions / size) and not self._warned:
            self._warned = True
            remedy = ", --restart_dead_codewords 500" if self.model.quantizer.can_restart else ""
            self.session.say(
                f"warning: only {utilization:.0%} of the codewords are in use: try --init closed_form{remedy}, or a "
                "higher --codebook_learning_rate"
            )

    def _write(self, values: dict, rows: list, step: int) -> None:
        session = self.session
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
        session.say(f"after step {step}, on {self.count} images: {numbers}")
        if session.options.report_to:
            session.accelerator.log({f"validation/{name}": value for name, value in values.items()}, step=step)
        if not session.accelerator.is_main_process:
            return
        folder = session.folder.claim("validation")
        folder.mkdir(exist_ok=True)
        path = folder / "metrics.jsonl"
        if path.exists():
            cut_lines(path, step - 1)  # a resumed run repeats the later ones
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        images = [tuple(map(to_image, (x, y, error_map(x, y)))) for x, y in rows]
        titles = ("original", "reconstruction", f"error x {ERROR_GAIN}")
        grid_image([("", row) for row in images], titles, side=256).save(folder / f"step-{step:08d}.png")
        for tracker in session.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                with contextlib.suppress(ImportError, AttributeError, TypeError):  # trackers take different arguments
                    tracker.log_images({"validation": [row[1] for row in images]}, step=step)
