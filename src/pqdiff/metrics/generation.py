"""Evaluation of generated images: distances to a set of real ones, and whether prompts of scenes are right."""

import platform
from collections.abc import Callable

import diffusers
import torch
from PIL import Image
from torchmetrics import Metric, MetricCollection

from pqdiff.data.images.crops import resize_and_crop
from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.captions import parse_caption
from pqdiff.data.scenes.checker import ATTRIBUTES, check_scene, read_scenes


class PromptsRight(Metric):
    """Fraction of generated scenes that show what the prompt says: each attribute, and all of them. Higher is better.

    Prompts that describe no scene are not counted; without any the fractions are NaN.
    """

    higher_is_better = True
    is_differentiable = False
    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_state("right", torch.zeros(len(ATTRIBUTES) + 1, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("count", torch.tensor(0), dist_reduce_fx="sum")

    def update(self, image: torch.Tensor, prompt: str) -> None:
        """Add a generated image, uint8 `(3, H, W)`, and its prompt."""
        scene = parse_caption(prompt)
        if scene is None:
            return
        verdict = check_scene(read_scenes(image[None].cpu())[0], scene)
        right = [bool(verdict[name]) for name in ATTRIBUTES]
        self.right += torch.tensor([*right, all(right)], device=self.right.device)
        self.count += 1

    def compute(self) -> dict[str, torch.Tensor]:
        """Fractions `right_` with the names of the attributes, and `right_all`."""
        fractions = self.right.double() / self.count
        return {f"right_{name}": value for name, value in zip((*ATTRIBUTES, "all"), fractions, strict=True)}


class GenerationEvaluation:
    """Metrics of what a pipeline generates from the captions of images, one generated image for each real one.

    Args:
        generate: uint8 `(3, H, W)` of a prompt and a seed.
        seed: image number i is generated with seed + i, so that processes and interruptions change nothing.
        perception: `PerceptionMetrics` of sets (`paired=False`), or None.
        description: what the protocol says about the pipeline and its settings, as JSON values.
    """

    def __init__(
        self,
        generate: Callable[[str, int], torch.Tensor],
        seed: int = 0,
        perception=None,
        description: dict | None = None,
    ):
        self.generate, self.seed, self.perception = generate, seed, perception
        self.description = description or {}
        self.prompts = MetricCollection({"prompts": PromptsRight()}, compute_groups=False)

    def add(self, image: Image.Image, caption: str, number: int) -> None:
        """Generate from the caption of image number `number`, and add both images to all metrics."""
        result = self.generate(caption, self.seed + number).cpu()
        self.prompts["prompts"].update(result, caption)
        if self.perception is not None:
            side = min(result.shape[1:])
            self.perception.update(to_tensor(resize_and_crop(image, side))[None], result[None])

    @property
    def collections(self) -> dict[str, MetricCollection]:
        """All metrics."""
        return {"prompts": self.prompts} | ({"perception": self.perception} if self.perception is not None else {})

    def result(self) -> dict:
        """`metrics`, `missing` (why a number is null) and `protocol`, over all processes. All of them must call it."""
        values = self.prompts["prompts"].compute()
        metrics = {name: None if value.isnan() else float(value) for name, value in values.items()}
        missing = {name: "no prompt describes a scene" for name, value in metrics.items() if value is None}
        networks = {}
        if self.perception is not None:
            metrics |= self.perception.compute()
            missing |= self.perception.missing
            networks = {"networks": self.perception.networks}
        protocol = {"name": "generation", **self.description, "seed": self.seed, **networks}
        versions = {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "diffusers": diffusers.__version__,
        }
        return {
            "metrics": metrics,
            "missing": missing,
            "protocol": {**protocol, "machine": platform.machine(), **versions},
        }
