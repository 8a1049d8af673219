"""Captioned synthetic scenes: colored shapes of two sizes on a plain background, placed, related to each other, or counted.

The tiny models that ship with the project learn from them. `checker.py` can tell without a judge whether an image of a
scene fits its caption. Some pairs of color and shape never occur in training, so that prompts with them ask for a
combination that the model has not seen.
"""

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from pqdiff.data.captions.captioned_images import CaptionedImages
from pqdiff.data.images.lazy_image import LazyImage

COLORS = {
    "red": (220, 40, 40),
    "green": (40, 170, 60),
    "blue": (50, 80, 220),
    "yellow": (240, 210, 40),
    "purple": (140, 40, 200),
    "cyan": (40, 200, 210),
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = {"small": 0.23, "large": 0.36}  # diameter as a fraction of the image's side
BACKGROUNDS = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (12, 12, 12)}
PLACES = {
    "top left": (0.27, 0.27),
    "top right": (0.73, 0.27),
    "bottom left": (0.27, 0.73),
    "bottom right": (0.73, 0.73),
    "center": (0.5, 0.5),
}
RELATIONS = ("above", "below", "left of", "right of")
COUNTS = {"two": 2, "three": 3, "four": 4}
HELD_OUT_PAIRS = (("red", "triangle"), ("green", "circle"), ("blue", "cross"), ("yellow", "square"))

_KINDS = {"place": 0.3, "relation": 0.4, "count": 0.3}
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class SceneObject:
    """One shape. `center` is (x, y) and `diameter` a length, as fractions of the image's side."""

    size: str
    color: str
    shape: str
    center: tuple[float, float]
    diameter: float

    @property
    def name(self) -> str:
        """E.g. `small red circle`."""
        return f"{self.size} {self.color} {self.shape}"


@dataclass(frozen=True)
class Scene:
    """What an image shows and what its caption says.

    Attributes:
        kind: `place` (one object somewhere), `relation` (two objects) or `count` (two to four equal objects).
        objects: the shapes, in the caption's order.
        background: name of the background color.
        says_background: whether the caption names it.
        detail: the place, relation or count, as a word of the caption.
    """

    kind: str
    objects: tuple[SceneObject, ...]
    background: str
    says_background: bool
    detail: str

    @property
    def caption(self) -> str:
        """The sentence that describes the scene."""
        first = self.objects[0]
        if self.kind == "place":
            text = f"a {first.name} in the {self.detail}"
        elif self.kind == "relation":
            text = f"a {first.name} {self.detail} a {self.objects[1].name}"
        else:
            text = f"{self.detail} {first.name}{'es' if first.shape == 'cross' else 's'}"
        return f"{text} on a {self.background} background" if self.says_background else text

    def render(self, resolution: int) -> Image.Image:
        """RGB image with sides of `resolution` pixels and antialiased edges."""
        side = resolution * _SUPERSAMPLING
        image = Image.new("RGB", (side, side), BACKGROUNDS[self.background])
        draw = ImageDraw.Draw(image)
        for item in self.objects:
            draw_shape(draw, item.shape, item.center, item.diameter, COLORS[item.color], side)
        return image.reduce(_SUPERSAMPLING)


def draw_shape(draw: ImageDraw.ImageDraw, shape: str, center, diameter: float, color, side: int) -> None:
    """Draw one shape; `center` and `diameter` are fractions of `side` pixels.

    Raises:
        ValueError: if `shape` is not one of `SHAPES`.
    """
    x, y, radius = center[0] * side, center[1] * side, diameter * side / 2
    if shape == "circle":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == "square":
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == "triangle":
        corners = [(x, y - 0.9 * radius), (x - radius, y + 0.9 * radius), (x + radius, y + 0.9 * radius)]
        draw.polygon(corners, fill=color)
    elif shape == "cross":
        arm = radius / 3
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=color)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=color)
    else:
        raise ValueError(f"shape ({shape!r}) must be one of {', '.join(SHAPES)}")


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """A scene without held-out pairs of color and shape; with `held_out`, a scene that has at least one."""
    kind = rng.choices(list(_KINDS), list(_KINDS.values()))[0]
    background = rng.choice(list(BACKGROUNDS))
    says_background = rng.random() < 0.5
    looks = [_random_look(rng, held_out)]
    if kind == "relation":
        other = looks[0]
        while other[1:] == looks[0][1:]:  # two objects that look the same have no order
            other = _random_look(rng, held_out and rng.random() < 0.5)
        looks.append(other)
        rng.shuffle(looks)
        detail = rng.choice(RELATIONS)
        centers = _related_centers(rng, detail)
    elif kind == "place":
        detail = rng.choice(list(PLACES))
        centers = [_jitter(rng, PLACES[detail], 0.04)]
    else:
        detail = rng.choice(list(COUNTS))
        looks *= COUNTS[detail]
        cells = rng.sample([place for name, place in PLACES.items() if name != "center"], COUNTS[detail])
        centers = [_jitter(rng, cell, 0.025) for cell in cells]  # four large ones do not touch
    objects = tuple(
        SceneObject(size, color, shape, center, SIZES[size] * rng.uniform(0.95, 1.05))
        for (size, color, shape), center in zip(looks, centers, strict=True)
    )
    return Scene(kind, objects, background, says_background, detail)


def scene_prompts(count: int, seed: int = 0) -> list[Scene]:
    """Scenes with distinct captions, each with a pair of color and shape that training never shows.

    Raises:
        ValueError: if there are fewer such captions than `count`.
    """
    rng = random.Random(f"prompts {seed}")
    found: dict[str, Scene] = {}
    repeats = 0
    while len(found) < count:
        scene = random_scene(rng, held_out=True)
        repeats = repeats + 1 if scene.caption in found else 0
        if repeats > 10_000:
            raise ValueError(f"count ({count}) is more than the {len(found)} captions found; ask for fewer")
        found.setdefault(scene.caption, scene)
    return list(found.values())


class SceneDataset(CaptionedImages):
    """Scenes by number, drawn when they are asked for. No scene has a held-out pair.

    Scene i of a seed is always the same, at any resolution.

    Args:
        num_scenes: length of the data set.
        resolution: side of the images in pixels, at least 16.
        seed: which scenes.

    Raises:
        ValueError: if there is no scene, or the resolution is too small.
    """

    def __init__(self, num_scenes: int, resolution: int, seed: int = 0):
        if num_scenes < 1 or resolution < 16:
            raise ValueError(
                f"num_scenes ({num_scenes}) must be at least 1 and resolution ({resolution}) at least 16 pixels"
            )
        self.num_scenes, self.resolution, self.seed = num_scenes, resolution, seed

    def __len__(self) -> int:
        return self.num_scenes

    def scene(self, index: int) -> Scene:
        """Description of scene `index`."""
        if not 0 <= index < self.num_scenes:
            raise IndexError(f"scene {index} of {self.num_scenes}")
        return random_scene(random.Random(f"scene {self.seed} {index}"))

    def row(self, index: int) -> LazyImage:
        scene = self.scene(index)
        return LazyImage(f"scenes-{self.seed}[{index}]", (scene.caption,), scene.render(self.resolution))

    def size_of(self, index: int) -> tuple[int, int]:
        return self.resolution, self.resolution


def _random_look(rng: random.Random, held_out: bool) -> tuple[str, str, str]:
    size = rng.choice(list(SIZES))
    if held_out:
        return size, *rng.choice(HELD_OUT_PAIRS)
    while True:
        pair = rng.choice(list(COLORS)), rng.choice(SHAPES)
        if pair not in HELD_OUT_PAIRS:
            return size, *pair


def _related_centers(rng: random.Random, relation: str) -> list[tuple[float, float]]:
    """Centers of the first and the second object: far apart along one axis, close together along the other."""
    near, far = 0.26 + rng.uniform(-0.015, 0.015), 0.74 + rng.uniform(-0.015, 0.015)
    first, second = (near, far) if relation in ("above", "left of") else (far, near)
    across = [0.5 + rng.uniform(-0.08, 0.08) for _ in range(2)]
    if relation in ("above", "below"):
        return [(across[0], first), (across[1], second)]
    return [(first, across[0]), (second, across[1])]


def _jitter(rng: random.Random, center: tuple[float, float], amount: float) -> tuple[float, float]:
    return center[0] + rng.uniform(-amount, amount), center[1] + rng.uniform(-amount, amount)
