"""Reconstructions of fixed photos while training goes on: numbers and panels."""

import argparse
import contextlib
import json
from collections.abc import Callable, Iterable

import torch
from PIL import Image

from ..data.grid import grid_image
from ..data.images import normalize, resize_and_crop, to_image, to_pixels, to_tensor
from ..metrics import CodebookUsage, DatasetPSNR, ImageSSIM
from ..metrics.reconstruction import as_number
from ..models import AutoencoderPQ
from .session import Session

_ERROR_GAIN = 4  # how much the error maps exaggerate
_PANELS = 6  # photos on a sheet
_POOR_USE = 0.5  # of the codewords that the photos could use


def add_reconstruction_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that `ReconstructionValidation` reads."""
    group = parser.add_argument_group("validation")
    group.add_argument("--validation_steps", type=int, default=1000, help="optimizer steps between; 0: never")
    group.add_argument("--validation_images", type=int, default=64, help="at most so many, from all over the data")
    group.add_argument("--validation_resolution", type=int, help="side of the center crop; default: --resolution")


class ReconstructionValidation:
    """PSNR, SSIM, codebook use and, with a network for it, LPIPS on held-out photos, by the protocol of record: shorter
    side by Lanczos, center crop, 8-bit output. All ranks share the photos out.

    Every result is a line of OUTPUT_DIR/validation/metrics.jsonl and a sheet OUTPUT_DIR/validation/step-N.png with
    original, reconstruction and error. Training's random states do not notice.

    Args:
        session: of the run.
        images: RGB images; as many are kept as the arguments say.
        perceptual: distance of two batches of images in [-1, 1], one number each, or None.

    Raises:
        ValueError: if there are no images.
    """

    def __init__(self, session: Session, images: Iterable[Image.Image], perceptual: Callable | None = None):
        args = session.args
        self.session, self.perceptual = session, perceptual
        resolution = args.validation_resolution or args.resolution
        pixels = [to_tensor(resize_and_crop(image, resolution)) for image in images]
        if not pixels:
            raise ValueError("--validation_images (0) must be at least 1, or --validation_steps 0 for no validation")
        self.count = len(pixels)
        self.pixels = pixels[session.layout.rank :: session.layout.processes]
        self.folder = session.output_dir / "validation"
        self._warned = False

    def due(self, step: int) -> bool:
        """Whether step `step` is one to validate after: the first, the last and every so many between."""
        every = self.session.args.validation_steps
        return bool(every) and (step % every == 0 or step == self.session.total_steps)

    @torch.no_grad()
    def __call__(self, model: AutoencoderPQ, step: int) -> dict[str, float | None]:
        """Numbers of a model (unwrapped) after `step` steps. All ranks must call it."""
        device, sizes = self.session.accelerator.device, model.quantizer.codebook_sizes
        psnr, ssim, usage = (metric.to(device) for metric in (DatasetPSNR(), ImageSSIM(), CodebookUsage(sizes)))
        distances, rows = torch.zeros(2, device=device), []
        training = model.training
        model.eval()
        for pixels in self.pixels:
            pixels = pixels[None].to(device)
            indices = model.encode_to_indices(normalize(pixels))
            result = to_pixels(model.decode_from_indices(indices).sample)
            psnr.update(result, pixels)
            ssim.update(result, pixels)
            usage.update(indices)
            if self.perceptual is not None:
                distances += torch.stack(
                    [self.perceptual(normalize(result), normalize(pixels)).sum(), distances.new_ones(())]
                )
            if len(rows) < _PANELS:
                rows.append((pixels[0].cpu(), result[0].cpu()))
        model.train(training)
        positions = usage.counts[0].sum().clone()
        if self.session.layout.processes > 1:
            distances, positions = (self.session.accelerator.reduce(x, "sum") for x in (distances, positions))
        used = usage.compute()
        values = {
            "psnr": as_number(psnr.compute()),
            "ssim": as_number(ssim.compute()),
            "codebook_utilization": as_number(used["utilization"]),
            "codebook_h_n": as_number(used["h_n"]),
        }
        if self.perceptual is not None:
            values["lpips_vgg"] = as_number(distances[0] / distances[1])
        self._warn(values["codebook_utilization"], int(positions), max(sizes))
        self._write(values, rows, step)
        return values

    def _warn(self, utilization: float, positions: int, size: int) -> None:
        if utilization < _POOR_USE * min(1, positions / size) and not self._warned:
            self._warned = True
            self.session.say(
                f"warning: only {utilization:.0%} of the codewords are in use: try --init closed_form, "
                "--restart_dead_codewords 500, or a higher --codebook_learning_rate"
            )

    def _write(self, values: dict, rows: list, step: int) -> None:
        session = self.session
        numbers = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)
        session.say(f"after step {step}, on {self.count} photos: {numbers}")
        if session.args.report_to:
            session.accelerator.log({f"validation/{name}": value for name, value in values.items()}, step=step)
        if not session.accelerator.is_main_process:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "metrics.jsonl"
        lines = (
            [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
        )
        lines = [line for line in lines if line["step"] < step]  # a resumed run does the later ones again
        path.write_text("".join(f"{json.dumps(line)}\n" for line in [*lines, {"step": step, **values}]))
        pictures = [tuple(map(to_image, (x, y, _error_map(x, y)))) for x, y in rows]
        titles = ("original", "reconstruction", f"error x {_ERROR_GAIN}")
        grid_image([("", row) for row in pictures], titles, side=256).save(self.folder / f"step-{step:08d}.png")
        for tracker in session.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                with contextlib.suppress(ImportError, AttributeError, TypeError):  # the trackers' wishes differ
                    tracker.log_images({"validation": [row[1] for row in pictures]}, step=step)


def _error_map(original: torch.Tensor, pixels: torch.Tensor) -> torch.Tensor:
    """Absolute error, amplified, on black: uint8 `(3, H, W)`."""
    return (original.int() - pixels.int()).abs().mul(_ERROR_GAIN).clamp(max=255).to(torch.uint8)
