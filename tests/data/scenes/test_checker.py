"""The checker reads clean images right, calls wrong ones wrong for what is wrong with them, and survives any image."""

import dataclasses
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.checker import ATTRIBUTES, check_scene, count_right, read_scenes
from pqdiff.data.scenes.scenes import (
    BACKGROUNDS,
    COLORS,
    PLACES,
    SHAPES,
    SIZES,
    Scene,
    SceneDataset,
    SceneObject,
    random_scene,
    scene_prompts,
)


def draw(*scenes, side=64):
    return torch.stack([to_tensor(scene.render(side)) for scene in scenes])


def verdict(drawn, asked, side=64):
    """What the checker says of an image of one scene for the caption of another."""
    return check_scene(read_scenes(draw(drawn, side=side))[0], asked)


def wrong(drawn, asked):
    found = verdict(drawn, asked)
    assert found["all"] == all(found[name] for name in ATTRIBUTES)
    return {name for name in ATTRIBUTES if not found[name]}


def scene_of(kind="place", detail="top left", *looks, background="gray", centers=None):
    """A scene that says its background; a look is size, color and shape."""
    looks = looks or ("small red circle",)
    centers = centers or [PLACES[detail]] if kind == "place" else centers
    objects = tuple(
        SceneObject(*look.split(), center, SIZES[look.split()[0]]) for look, center in zip(looks, centers, strict=True)
    )
    return Scene(kind, objects, background, True, detail)


PLACED = scene_of()
RELATED = scene_of("relation", "above", "small red circle", "large blue square", centers=[(0.5, 0.26), (0.5, 0.74)])
COUNTED = scene_of("count", "two", *["small cyan cross"] * 2, centers=[PLACES["top left"], PLACES["bottom right"]])


@pytest.mark.parametrize(("side", "count"), [(64, 200), (128, 40)])
def test_clean_images_are_read_right(side, count):
    scenes = [SceneDataset(count, side).scene(i) for i in range(count // 2)]
    scenes += [random_scene(random.Random(i), held_out=True) for i in range(count // 2)]
    right = count_right(read_scenes(draw(*scenes, side=side)), scenes)
    assert min(right.values()) >= 0.99, right


def test_noise_and_blur_as_decoders_leave_them_do_little_harm():
    scenes = scene_prompts(60)
    pixels = draw(*scenes).float()
    blurred = torch.nn.functional.avg_pool2d(pixels, 3, stride=1, padding=1, count_include_pad=False)
    generator = torch.Generator().manual_seed(0)
    noisy = (blurred + 12 * torch.randn(blurred.shape, generator=generator)).clamp(0, 255).round().byte()
    assert count_right(read_scenes(noisy), scenes)["all"] >= 0.95


@pytest.mark.parametrize("color", [name for name in COLORS if name != "red"])
def test_another_color_is_called_wrong(color):
    assert wrong(scene_of("place", "top left", f"small {color} circle"), PLACED) == {"color"}


@pytest.mark.parametrize("shape", [name for name in SHAPES if name != "circle"])
def test_another_shape_is_called_wrong(shape):
    assert wrong(scene_of("place", "top left", f"small red {shape}"), PLACED) == {"shape"}


def test_another_size_is_called_wrong():
    assert wrong(scene_of("place", "top left", "large red circle"), PLACED) == {"size"}


@pytest.mark.parametrize("place", [name for name in PLACES if name != "top left"])
def test_another_place_is_called_wrong(place):
    assert wrong(scene_of("place", place), PLACED) == {"position"}


@pytest.mark.parametrize("background", [name for name in BACKGROUNDS if name != "gray"])
def test_another_background_is_called_wrong_if_the_caption_speaks_of_it(background):
    drawn = scene_of(background=background)
    assert wrong(drawn, PLACED) == {"background"}
    assert wrong(drawn, dataclasses.replace(PLACED, says_background=False)) == set()


@pytest.mark.parametrize("relation", ["below", "left of", "right of"])
def test_another_relation_is_called_wrong(relation):
    assert wrong(RELATED, RELATED) == set()
    assert wrong(RELATED, dataclasses.replace(RELATED, detail=relation)) == {"position"}


def test_colors_that_changed_places_are_called_wrong():
    swapped = scene_of(
        "relation", "above", "small blue circle", "large red square", centers=[(0.5, 0.26), (0.5, 0.74)]
    )
    assert not verdict(swapped, RELATED)["all"]
    assert {"color"} <= wrong(swapped, RELATED) or {"position"} <= wrong(swapped, RELATED)


def test_one_object_too_many_or_too_few_is_called_wrong():
    more = scene_of(
        "count", "three", *["small cyan cross"] * 3, centers=[PLACES[p] for p in ("top left", "top right", "bottom left")]
    )  # fmt: skip
    fewer = scene_of("place", "top left", "small cyan cross")
    assert wrong(COUNTED, COUNTED) == set()
    assert wrong(more, COUNTED) == {"count"}
    assert "count" in wrong(fewer, COUNTED)
    assert not verdict(fewer, COUNTED)["all"]


def test_one_wrong_object_among_equal_ones_is_called_wrong():
    mixed = scene_of(
        "count", "two", "small cyan cross", "small cyan square", centers=[PLACES["top left"], PLACES["bottom right"]]
    )  # fmt: skip
    assert wrong(mixed, COUNTED) == {"shape"}


@given(st.integers(0, 10**6), st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_a_scene_with_another_caption_is_called_wrong(first, second):
    drawn, asked = (random_scene(random.Random(seed)) for seed in (first, second))
    comparable = [dataclasses.replace(scene, says_background=False).caption for scene in (drawn, asked)]
    expected = comparable[0] == comparable[1] and not (asked.says_background and drawn.background != asked.background)
    swapped = drawn.kind == asked.kind == "relation" and {item.name for item in drawn.objects} == {
        item.name for item in asked.objects
    }
    if not swapped:  # "a above b" is "b below a"
        assert verdict(drawn, asked)["all"] == expected


def test_a_relation_holds_when_it_is_told_the_other_way_round():
    told = scene_of("relation", "below", "large blue square", "small red circle", centers=[(0.5, 0.74), (0.5, 0.26)])
    assert wrong(RELATED, told) == set()


def test_what_is_read_names_every_object():
    (reading,) = read_scenes(draw(RELATED))
    assert reading.background == "gray"
    assert {(item.size, item.color, item.shape) for item in reading.objects} == {
        ("small", "red", "circle"), ("large", "blue", "square"),
    }  # fmt: skip
    centers = {item.color: item.center for item in reading.objects}
    assert centers["red"] == pytest.approx((0.5, 0.26), abs=0.02)


def test_specks_are_no_objects():
    pixels = draw(PLACED)
    pixels[:, :, 50:53, 50:53] = torch.tensor(COLORS["blue"], dtype=torch.uint8).view(1, 3, 1, 1)
    assert len(read_scenes(pixels)[0].objects) == 1


@pytest.mark.parametrize("background", BACKGROUNDS)
def test_empty_images_hold_nothing(background):
    pixels = torch.tensor(BACKGROUNDS[background], dtype=torch.uint8).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    readings = read_scenes(pixels)
    assert [(reading.background, reading.objects) for reading in readings] == [(background, ())] * 2
    assert wrong_of(readings[0]) == {"count", "color", "shape", "size", "position"} | (
        set() if background == "gray" else {"background"}
    )


def wrong_of(reading):
    found = check_scene(reading, PLACED)
    return {name for name in ATTRIBUTES if not found[name]}


@given(st.integers(0, 10**6), st.sampled_from([16, 33, 64]))
@settings(max_examples=10, deadline=None)
def test_any_image_can_be_read(seed, side):
    pixels = torch.randint(0, 256, (2, 3, side, side + 5), dtype=torch.uint8, generator=torch.manual_seed(seed))
    assert len(read_scenes(pixels)) == 2


def test_images_are_read_alike_alone_and_in_a_batch():
    pixels = draw(*(random_scene(random.Random(i)) for i in range(70)))
    together = read_scenes(pixels)
    assert [read_scenes(pixels[i : i + 1])[0] for i in (0, 63, 64, 69)] == [together[i] for i in (0, 63, 64, 69)]


def test_fractions_count_an_attribute_only_where_captions_speak_of_it():
    scenes = [PLACED, dataclasses.replace(PLACED, says_background=False), COUNTED]
    drawn = [PLACED, scene_of(background="black"), PLACED]
    right = count_right(read_scenes(draw(*drawn)), scenes)
    assert right["background"] == 1.0  # of the first and the third
    assert right["position"] == 1.0  # of the first and the second
    assert right["count"] == right["all"] == pytest.approx(2 / 3)


def test_attributes_of_which_no_caption_speaks_are_undefined():
    scenes = [dataclasses.replace(COUNTED, says_background=False)]
    right = count_right(read_scenes(draw(COUNTED)), scenes)
    assert right["background"] != right["background"]
    assert right["position"] != right["position"]
    assert right["all"] == 1.0


@pytest.mark.parametrize("pixels", [torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(1, 3, 8, 8)])
def test_other_tensors_are_refused(pixels):
    with pytest.raises(ValueError, match=r"pixels must be \(B, 3, H, W\) uint8"):
        read_scenes(pixels)
