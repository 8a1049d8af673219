"""Find the scene that a caption describes: the inverse of `Scene.caption`."""

import re

from pqdiff.data.scenes.scenes import BACKGROUNDS, COLORS, COUNTS, PLACES, RELATIONS, SHAPES, SIZES, Scene, SceneObject

_DEFAULT_BACKGROUND = next(iter(BACKGROUNDS))
_NEAR, _FAR = 0.26, 0.74  # centers of two related objects, without a random offset


def _one_of(name: str, words) -> str:
    return f"(?P<{name}>{'|'.join(words)})"


def _look(number: int) -> str:
    parts = {"size": SIZES, "color": COLORS, "shape": SHAPES}
    return " ".join(_one_of(f"{name}{number}", words) for name, words in parts.items())


_CAPTION = re.compile(
    f"(?:a {_look(1)} in the {_one_of('place', PLACES)}"
    f"|a {_look(2)} {_one_of('relation', RELATIONS)} a {_look(3)}"
    f"|{_one_of('count', COUNTS)} {_look(0)}e?s)"
    f"(?: on a {_one_of('background', BACKGROUNDS)} background)?"
)


def parse_caption(text: str) -> Scene | None:
    """The scene that a caption describes, or None if it is not the caption of a scene.

    Capitals and extra spaces do not matter; they do not matter to the tokenizer either. What a caption does not mention
    takes a fixed value: objects are in the middle of where they may be, and a background without a name is white.
    """
    match = _CAPTION.fullmatch(" ".join(text.lower().split()))
    if match is None:
        return None
    found = match.groupdict()
    background, says_background = found["background"] or _DEFAULT_BACKGROUND, found["background"] is not None
    if found["place"]:
        kind, detail, looks, centers = "place", found["place"], [1], [PLACES[found["place"]]]
    elif found["relation"]:
        kind, detail, looks, centers = "relation", found["relation"], [2, 3], _related(found["relation"])
    else:
        kind, detail = "count", found["count"]
        centers = [place for name, place in PLACES.items() if name != "center"][: COUNTS[detail]]
        looks = [0] * len(centers)
    objects = tuple(
        SceneObject(found[f"size{i}"], found[f"color{i}"], found[f"shape{i}"], center, SIZES[found[f"size{i}"]])
        for i, center in zip(looks, centers, strict=True)
    )
    scene = Scene(kind, objects, background, says_background, detail)
    return scene if scene.caption == match.string else None  # else a plural that is wrong for its shape


def _related(relation: str) -> list[tuple[float, float]]:
    first, second = (_NEAR, _FAR) if relation in ("above", "left of") else (_FAR, _NEAR)
    if relation in ("above", "below"):
        return [(0.5, first), (0.5, second)]
    return [(first, 0.5), (second, 0.5)]
