"""Read an image of a scene: which shapes of which color and size are where, and whether a caption is true of it.

Every pixel is described as a blend of the background with one of the known colors. Connected pixels of one color are an
object, and its outline is compared with templates of the shapes. Nothing is learned.
"""

import functools
import itertools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFilter

from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.scenes import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, Scene, draw_shape

ATTRIBUTES = ("count", "color", "shape", "size", "position", "background")

_TEMPLATE = 16  # side of the outlines that are compared
_SMALLEST = 0.006  # smallest area of an object as a fraction of the image
_SIZE_LIMIT = sum(SIZES.values()) / 2


@dataclass(frozen=True)
class FoundObject:
    """One shape as it was read; `center` is (x, y) as fractions of the image's sides."""

    size: str
    color: str
    shape: str
    center: tuple[float, float]


@dataclass(frozen=True)
class SceneReading:
    """What an image shows: the name of its background, and its objects."""

    background: str
    objects: tuple[FoundObject, ...]


def read_scenes(pixels: torch.Tensor) -> list[SceneReading]:
    """Read images.

    Args:
        pixels: uint8 `(B, 3, H, W)`.

    Raises:
        ValueError: for a tensor of another shape or dtype.
    """
    if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.uint8:
        raise ValueError(f"pixels must be (B, 3, H, W) uint8, got {tuple(pixels.shape)} {pixels.dtype}")
    readings = []
    for part in pixels.split(64):
        readings += _read(part.float())
    return readings


def check_scene(reading: SceneReading, scene: Scene) -> dict[str, bool]:
    """Whether an image shows what the caption of `scene` says.

    What the caption does not mention counts as right. Objects are assigned to those of the caption in the way that makes
    most attributes right.

    Returns:
        A verdict for each of `ATTRIBUTES`, and for `all` of them together.
    """
    wanted = scene.objects
    background = not scene.says_background or reading.background == scene.background
    best = dict.fromkeys(("color", "shape", "size", "position"), False)
    for chosen in itertools.permutations(reading.objects, min(len(wanted), len(reading.objects))):
        pairs = list(zip(chosen, wanted, strict=False))
        complete = len(chosen) == len(wanted)
        verdict = {
            name: complete and all(getattr(found, name) == getattr(item, name) for found, item in pairs)
            for name in ("color", "shape", "size")
        }
        verdict["position"] = complete and _position_holds(scene, chosen)
        if sum(verdict.values()) > sum(best.values()):
            best = verdict
        if scene.kind == "count" or all(best.values()):
            break  # no other assignment can be better; those of equal objects are all alike
    result = {"count": len(reading.objects) == len(wanted), **best, "background": background}
    return {**result, "all": all(result.values())}


def _position_holds(scene: Scene, chosen: tuple[FoundObject, ...]) -> bool:
    if scene.kind == "count":
        return True
    if scene.kind == "place":
        x, y = chosen[0].center
        distances = {name: (x - px) ** 2 + (y - py) ** 2 for name, (px, py) in PLACES.items()}
        return min(distances, key=distances.get) == scene.detail
    (x0, y0), (x1, y1) = (found.center for found in chosen)
    right, down = x1 - x0, y1 - y0
    if scene.detail in ("above", "below"):
        return abs(down) > abs(right) and (down > 0) == (scene.detail == "above")
    return abs(right) > abs(down) and (right > 0) == (scene.detail == "left of")


def _read(pixels: torch.Tensor) -> list[SceneReading]:
    """Readings of float images (B, 3, H, W) in [0, 255]."""
    batch, _, height, width = pixels.shape
    margin = max(1, min(height, width) // 32)
    frame = torch.ones(height, width, dtype=torch.bool)
    frame[margin:-margin, margin:-margin] = False
    backdrop = pixels[:, :, frame].median(dim=2).values  # (B, 3)
    known = torch.tensor(list(BACKGROUNDS.values()), dtype=torch.float)
    names = [list(BACKGROUNDS)[i] for i in torch.cdist(backdrop, known).argmin(dim=1)]

    # Blend weight of every color in every pixel, and the squared error of that blend.
    palette = torch.tensor(list(COLORS.values()), dtype=torch.float)  # (C, 3)
    direction = palette[None] - backdrop[:, None]  # (B, C, 3)
    lengths = direction.square().sum(dim=2, keepdim=True)  # (B, C, 1)
    offset = (pixels - backdrop[:, :, None, None]).flatten(2)  # (B, 3, HW)
    weight = direction @ offset / lengths  # (B, C, HW)
    blend = weight.clamp(0, 1)
    misfit = blend * (blend - 2 * weight) * lengths  # |offset - blend x direction|^2, without |offset|^2
    best = misfit.argmin(dim=1, keepdim=True)
    is_best = torch.zeros_like(misfit, dtype=torch.bool).scatter_(1, best, True)
    mask = ((weight > 0.5) & is_best).view(batch, len(palette), height, width)
    weight = weight.view_as(mask)

    smallest = _SMALLEST * height * width
    objects: list[list[FoundObject]] = [[] for _ in range(batch)]
    present = (mask.sum(dim=(2, 3)) >= smallest).nonzero()  # only colors that are there
    labels = _connected(mask[present[:, 0], present[:, 1]])
    for (b, c), regions in zip(present.tolist(), labels, strict=True):
        found, areas = regions.unique(return_counts=True)
        for label in found[(areas >= smallest) & (found > 0)]:
            objects[b].append(_describe(regions == label, weight[b, c], list(COLORS)[c]))
    return [
        SceneReading(name, tuple(sorted(items, key=lambda item: item.center)))
        for name, items in zip(names, objects, strict=True)
    ]


def _connected(mask: torch.Tensor) -> torch.Tensor:
    """Label of the 8-connected region that each pixel of (N, H, W) belongs to; 0 outside the mask."""
    _, height, width = mask.shape
    labels = torch.arange(1, height * width + 1, dtype=torch.float).view(height, width) * mask
    while True:
        spread = F.max_pool2d(labels[:, None], 3, stride=1, padding=1)[:, 0] * mask
        if torch.equal(spread, labels):
            return labels
        labels = spread


def _describe(region: torch.Tensor, weight: torch.Tensor, color: str) -> FoundObject:
    """Size, shape and center of a region (H, W), given the blend weight of its color (H, W)."""
    rows, columns = region.any(dim=1).nonzero()[:, 0], region.any(dim=0).nonzero()[:, 0]
    top, bottom, left, right = rows[0].item(), rows[-1].item() + 1, columns[0].item(), columns[-1].item() + 1
    outline = weight.clamp(0, 1)[top:bottom, left:right]
    errors = (_outline(outline) - _templates()).square().mean(dim=(2, 3)).amin(dim=1)
    extent = max((bottom - top) / region.shape[0], (right - left) / region.shape[1])
    return FoundObject(
        size="large" if extent > _SIZE_LIMIT else "small",
        color=color,
        shape=SHAPES[errors.argmin()],
        center=((left + right) / 2 / region.shape[1], (top + bottom) / 2 / region.shape[0]),
    )


def _outline(weight: torch.Tensor) -> torch.Tensor:
    return F.interpolate(weight[None, None], (_TEMPLATE, _TEMPLATE), mode="bilinear", antialias=True)[0, 0]


@functools.cache
def _templates() -> torch.Tensor:
    """Outlines (number of shapes, blurs, _TEMPLATE, _TEMPLATE) in [0, 1], cut to their bounding box, sharp and blurred."""
    outlines = []
    for shape in SHAPES:
        image = Image.new("RGB", (256, 256), "black")
        draw_shape(ImageDraw.Draw(image), shape, (0.5, 0.5), 0.6, "white", 256)
        versions = []
        for blur in (0, 6, 12):
            soft = to_tensor(image.filter(ImageFilter.GaussianBlur(blur)))[0].float() / 255
            rows, columns = ((soft > 0.5).any(dim=axis).nonzero()[:, 0] for axis in (1, 0))
            versions.append(_outline(soft[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]))
        outlines.append(torch.stack(versions))
    return torch.stack(outlines)


def count_right(readings: list[SceneReading], scenes: list[Scene]) -> dict[str, float]:
    """Fraction of images that are right in each of `ATTRIBUTES`, and in `all` of them; NaN where no caption counts.

    `background` counts only for captions that name it, and `position` only for those with a place or a relation.
    """
    verdicts = [check_scene(reading, scene) for reading, scene in zip(readings, scenes, strict=True)]
    speaks = {
        "background": [scene.says_background for scene in scenes],
        "position": [scene.kind != "count" for scene in scenes],
    }
    fractions = {}
    for name in (*ATTRIBUTES, "all"):
        relevant = speaks.get(name, [True] * len(scenes))
        values = [verdict[name] for verdict, counts in zip(verdicts, relevant, strict=True) if counts]
        fractions[name] = sum(values) / len(values) if values else float("nan")
    return fractions
