"""Evaluation of reconstructions: the same numbers on one process or many, interrupted or not."""

import contextlib
import json
import platform
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import diffusers
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import distributed
from torchmetrics import MetricCollection

from pqdiff.data.files import atomic_file
from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.lazy_image import LazyImage
from pqdiff.data.images.reading import to_tensor
from pqdiff.json_text import read_json
from pqdiff.metrics.protocol import ReconstructionMetrics
from pqdiff.metrics.reconstruction import as_number
from pqdiff.metrics.reconstructors import AutoencoderReconstructor
from pqdiff.metrics.robustness import ChangedTokens, NoisyReconstructor
from pqdiff.suggestions import did_you_mean

SMALLEST = 11  # pixels: the window of SSIM
_STATE = re.compile(r"state-\d{3,}(\.json|-\d+\.safetensors)")
_NO_IMAGES = "images is empty: give at least one image to evaluate on"
PROTOCOLS = {
    "pqdiff": "shorter side, Lanczos, center crop",
    "paper": "both sides, bilinear with antialiasing: the aspect ratio is lost",
}


class Evaluation:
    """Metrics of what one reconstructor makes of images.

    Args:
        reconstructor: what `build_reconstructor` gives.
        resolution: side in pixels of the images that it sees.
        protocol: how images come to that size: a name in `PROTOCOLS`.
        perception: metrics that need the weights of networks, or None.

    Raises:
        ValueError: for a resolution that the reconstructor cannot have, or an unknown protocol.
    """

    def __init__(self, reconstructor, resolution: int = 256, protocol: str = "pqdiff", perception=None):
        if protocol not in PROTOCOLS:
            raise ValueError(f"protocol ({protocol!r}) is not known: {did_you_mean(protocol, PROTOCOLS)}")
        check_resolution(resolution, reconstructor.factor, reconstructor.name)
        self.reconstructor, self.resolution, self.protocol = reconstructor, resolution, protocol
        self.perception = perception
        self.metrics = ReconstructionMetrics(reconstructor.codebook_sizes, perception=True)
        self.robustness = None
        if isinstance(reconstructor, NoisyReconstructor):
            self.robustness = MetricCollection({"changed_tokens": ChangedTokens()})

    def add(self, image: Image.Image, caption: str = "", number: int = 0) -> None:
        """Reconstruct an RGB image and add it to all metrics. Caption and number do not matter here."""
        if self.protocol == "paper":
            image = image.resize((self.resolution, self.resolution), Image.Resampling.BILINEAR)
        else:
            image = resize_and_crop(image, self.resolution)
        pixels, rounded = to_tensor(image)[None], self.protocol != "paper"
        result = self.reconstructor(pixels, rounded)
        device = self.metrics["psnr_dataset"].device
        reference, indices = (pixels if rounded else pixels / 255).to(device), result.indices
        indices = None if indices is None else indices.to(device)
        self.metrics.update(reference, result.pixels.to(device), indices, result.num_bytes)
        if self.robustness is not None:
            self.robustness.update(result.indices, result.clean_indices)
        if self.perception is not None:  # torchmetrics' FID, which the paper has, cuts to 8 bits
            self.perception.update(pixels, result.pixels if rounded else (result.pixels * 255).byte())

    @property
    def collections(self) -> dict[str, MetricCollection]:
        """All metrics."""
        parts = {"metrics": self.metrics, "perception": self.perception, "robustness": self.robustness}
        return {name: part for name, part in parts.items() if part is not None}

    def result(self) -> dict:
        """`metrics`, `missing` (why a number is null) and `protocol`, over all processes. All of them must call it."""
        metrics, missing = self.metrics.compute(), {}
        if self.perception is not None:
            metrics |= self.perception.compute()
            missing = dict(self.perception.missing)
        if self.robustness is not None:
            metrics |= {name: as_number(value) for name, value in self.robustness.compute().items()}
        return {"metrics": metrics, "missing": missing, "protocol": self._describe()}

    def _describe(self) -> dict:
        networks = {} if self.perception is None else {"networks": self.perception.networks}
        return {
            "name": self.protocol,
            "resolution": self.resolution,
            "resize": PROTOCOLS[self.protocol],
            "output": "8-bit" if self.protocol != "paper" else "not rounded; cut to 8 bits for networks",
            **self.reconstructor.describe(),
            **networks,
            "machine": platform.machine(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        }


class EvaluationRun:
    """Several evaluations over the same images, shared by processes, which can be killed and go on.

    Process r of n takes the images r, r + n, ... Every so many images it writes its sums to `folder`.

    Args:
        evaluations: by name, of reconstructions or (`GenerationEvaluation`) of generated images.
        rank: number of this process.
        processes: how many there are.
        strict: whether an image that cannot be read ends the run. It is left out and named otherwise.
        folder: for the sums so far, or None if nothing is kept.
        recipe: what must be the same when a run goes on, as JSON values.
        save_every: images of one process between two saves.
    """

    def __init__(
        self,
        evaluations: dict[str, Evaluation],
        rank: int = 0,
        processes: int = 1,
        strict: bool = True,
        folder: Path | None = None,
        recipe: dict | None = None,
        save_every: int = 200,
    ):
        self.evaluations, self.rank, self.processes, self.strict = evaluations, rank, processes, strict
        self.folder, self.save_every = folder, save_every
        self.recipe = {**(recipe or {}), "processes": processes, "names": list(evaluations)}
        self.done, self.count, self.digest, self.broken = 0, 0, 0, []
        if folder is not None and self._path("json").exists():
            self._load()

    def run(
        self, rows: Sequence[LazyImage] | Iterable[LazyImage], on_image: Callable[[int], None] = lambda done: None
    ):
        """Add the images of this process. `rows` are all images: those of other processes are passed over unread."""
        for number, row in enumerate(_skipping(rows, self.rank, self.processes, self.done), start=self.done + 1):
            try:
                image, digest = row.load(), row.digest()
            except ValueError as error:
                if self.strict:
                    raise
                self.broken.append(str(error))
            else:
                for evaluation in self.evaluations.values():
                    evaluation.add(image, row.caption, self.rank + (number - 1) * self.processes)
                self.count += 1
                self.digest = (self.digest + int.from_bytes(digest)) % 2**128  # a sum: no order of the images
            self.done = number
            if self.folder is not None and number % self.save_every == 0:
                self._save()
            on_image(number)

    def results(self) -> dict[str, dict]:
        """What each evaluation gives, with `num_images`, `broken` and `data_digest`. All processes must call it.

        Raises:
            ValueError: if no image could be read.
        """
        parts = [(self.count, self.digest, self.broken)]
        if self.processes > 1:
            parts = [None] * self.processes
            distributed.all_gather_object(parts, (self.count, self.digest, self.broken))
        counts, digests, broken = zip(*parts, strict=True)
        if not sum(counts):
            errors = [error for part in broken for error in part]
            raise ValueError(f"no image could be read: {errors[0]}" if errors else _NO_IMAGES)
        common = {
            "num_images": sum(counts),
            "broken": sorted(error for errors in broken for error in errors),
            "data_digest": f"{sum(digests) % 2**128:032x}",
        }
        return {name: {**common, **evaluation.result()} for name, evaluation in self.evaluations.items()}

    def forget(self) -> None:
        """Remove the sums of all processes, and the folder if nothing else is in it."""
        for path in self.folder.glob("state-*"):
            if _STATE.fullmatch(path.name):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _path(self, kind: str) -> Path:
        return self.folder / f"state-{self.rank:03d}.{kind}"

    def _save(self) -> None:
        tensors = {
            f"{name}/{part}/{key}": tensor
            for name, evaluation in self.evaluations.items()
            for part, collection in evaluation.collections.items()
            for key, tensor in _states(collection).items()
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        tensors_file = self.folder / f"state-{self.rank:03d}-{self.done}.safetensors"
        with atomic_file(tensors_file) as temporary:
            save_file(tensors, temporary)
        state = {"done": self.done, "count": self.count, "digest": f"{self.digest:x}", "broken": self.broken}
        with atomic_file(self._path("json")) as temporary:  # last: it says which sums are complete
            temporary.write_text(json.dumps({"recipe": self.recipe, **state}))
        for path in self.folder.glob(f"state-{self.rank:03d}-*.safetensors"):
            if path != tensors_file:
                path.unlink()

    def _load(self) -> None:
        path = self._path("json")
        state = read_json(path, str(path))
        if state.get("recipe") != json.loads(json.dumps(self.recipe)):
            raise ValueError(
                f"{self.folder}: holds another evaluation that is not finished: remove it or finish it first"
            )
        try:
            tensors = load_file(self.folder / f"state-{self.rank:03d}-{state['done']}.safetensors")
            for name, evaluation in self.evaluations.items():
                for part, collection in evaluation.collections.items():
                    prefix = f"{name}/{part}/"
                    own = {
                        key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)
                    }
                    _set_states(collection, own)
            self.done, self.count, self.broken = int(state["done"]), int(state["count"]), list(state["broken"])
            self.digest = int(state["digest"], 16)
        except (KeyError, TypeError, ValueError, OSError, RuntimeError, OverflowError, SafetensorError) as error:
            raise ValueError(f"{self.folder}: is damaged, remove it: {' '.join(str(error).split())}") from None


@torch.no_grad()
def evaluate_reconstruction(
    model,
    images: Iterable[Image.Image],
    resolution: int = 256,
    on_image: Callable[[int], None] = lambda count: None,
) -> dict:
    """Metrics of an `AutoencoderPQ`, or of another autoencoder, on RGB images, by the protocol of record.

    The shorter side of an image is resized to `resolution` by Lanczos and the center is cropped. The crop is encoded,
    decoded and rounded to 8 bits. All metrics are computed on the 8-bit images; `docs/metrics.md` says what they mean.

    Args:
        model: autoencoder, which is used on its device and in its dtype.
        images: RGB images.
        resolution: side of the crop in pixels, divisible by the downsampling factor, at least 11.
        on_image: called after every image with the number of images so far.

    Returns:
        dict that JSON can hold: `num_images`, `metrics` and `protocol`.

    Raises:
        ValueError: if there are no images, or the model gives values that are not finite.
    """
    evaluation, count = Evaluation(AutoencoderReconstructor(model, "the model"), resolution), 0
    for count, image in enumerate(images, start=1):
        evaluation.add(image)
        on_image(count)
    if not count:
        raise ValueError(_NO_IMAGES)
    return {"num_images": count, **evaluation.result()}


def check_resolution(resolution: int, factor: int, name: str) -> None:
    """ValueError unless images of this side can be reconstructed and measured."""
    least = -(-SMALLEST // factor) * factor
    if resolution < SMALLEST:
        raise ValueError(f"resolution ({resolution}) must be at least {least}: SSIM has a window of {SMALLEST} pixels")
    if resolution % factor:
        nearest = max(least, round(resolution / factor) * factor)
        raise ValueError(f"resolution ({resolution}) must be divisible by F = {factor} of {name}, such as {nearest}")


def _skipping(rows, rank: int, processes: int, done: int) -> Iterable[LazyImage]:
    """The images of one process after its first `done`."""
    numbers = range(rank + done * processes, 2**63, processes)
    if hasattr(rows, "row"):  # images by number
        yield from (rows.row(number) for number in numbers[: max(0, -(-(len(rows) - numbers.start) // processes))])
    else:
        yield from rows.shard(rank, processes).skip(done)


def _states(collection: MetricCollection) -> dict[str, torch.Tensor]:
    """All sums of a collection by name; a list becomes one tensor for each entry."""
    tensors = {}
    for name, metric in collection.items(keep_base=True):
        for state in metric._defaults:
            value = getattr(metric, state)
            entries = enumerate(value) if isinstance(value, list) else [("", value)]
            tensors |= {f"{name}.{state}.{index}": entry.detach().cpu().contiguous() for index, entry in entries}
    return tensors


def _set_states(collection: MetricCollection, tensors: dict[str, torch.Tensor]) -> None:
    """Put sums back that `_states` gave."""
    for name, metric in collection.items(keep_base=True):
        for state, default in metric._defaults.items():
            prefix = f"{name}.{state}."
            found = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
            if isinstance(default, list):
                setattr(metric, state, [found[str(index)].to(metric.device) for index in range(len(found))])
            else:
                setattr(metric, state, found[""].to(metric.device, default.dtype).reshape(default.shape))
        metric._update_count = 1  # so that `compute` does not warn
