"""Scenes are fixed by seed and number; training never shows a held-out pair, every prompt does."""

import itertools
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqdiff.data.scenes.scenes import (
    BACKGROUNDS,
    COLORS,
    COUNTS,
    HELD_OUT_PAIRS,
    PLACES,
    RELATIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneDataset,
    SceneObject,
    draw_shape,
    random_scene,
    scene_prompts,
)
from pqdiff.data.scenes.tokenizer import scene_words

SEEDS = st.integers(0, 10**6)


def pairs_of(scene):
    return {(item.color, item.shape) for item in scene.objects}


def gap(first, second):
    """Distance between the bounding boxes of two objects; negative where they overlap in both directions."""
    reach = (first.diameter + second.diameter) / 2
    return max(abs(a - b) - reach for a, b in zip(first.center, second.center, strict=True))


@given(SEEDS, SEEDS)
def test_training_scenes_never_have_a_held_out_pair(seed, index):
    assert not pairs_of(SceneDataset(index + 1, 64, seed).scene(index)) & set(HELD_OUT_PAIRS)


def test_every_prompt_has_a_held_out_pair_and_all_differ():
    prompts = scene_prompts(500)
    assert all(pairs_of(scene) & set(HELD_OUT_PAIRS) for scene in prompts)
    assert len({scene.caption for scene in prompts}) == 500


def test_prompts_ask_for_every_pair_place_relation_count_and_background():
    prompts = scene_prompts(500)
    assert set().union(*map(pairs_of, prompts)) >= set(HELD_OUT_PAIRS)
    assert {scene.detail for scene in prompts} == {*PLACES, *RELATIONS, *COUNTS}
    assert {scene.background for scene in prompts if scene.says_background} == set(BACKGROUNDS)


def test_prompts_are_fixed_by_their_seed():
    assert scene_prompts(20, 3) == scene_prompts(20, 3)
    assert scene_prompts(20, 3) == scene_prompts(40, 3)[:20]
    assert scene_prompts(20, 3) != scene_prompts(20, 4)


@pytest.mark.slow
def test_more_prompts_than_there_are_captions_is_an_error():
    with pytest.raises(ValueError, match=r"count \(30000\) is more than the \d+ captions found"):
        scene_prompts(30_000)


def test_training_shows_every_other_pair_in_every_way():
    scenes = [SceneDataset(2000, 64).scene(i) for i in range(2000)]
    shown = set().union(*map(pairs_of, scenes))
    assert shown == set(itertools.product(COLORS, SHAPES)) - set(HELD_OUT_PAIRS)
    kinds = Counter(scene.kind for scene in scenes)
    assert {kind: round(count / 2000, 1) for kind, count in kinds.items()} == {
        "place": 0.3, "relation": 0.4, "count": 0.3,
    }  # fmt: skip
    assert sum(scene.says_background for scene in scenes) / 2000 == pytest.approx(0.5, abs=0.05)


@given(SEEDS, SEEDS)
def test_a_scene_is_fixed_by_seed_and_number(seed, index):
    first = SceneDataset(index + 1, 64, seed).scene(index)
    assert first == SceneDataset(10**6 + 1, 128, seed).scene(index)


def test_images_are_fixed_and_show_the_same_at_every_resolution():
    for index in range(6):
        small, again, large = (SceneDataset(6, side)[index] for side in (32, 32, 64))
        assert small["image"].tobytes() == again["image"].tobytes()
        assert small["caption"] == large["caption"]
        reduced = np.asarray(large["image"].reduce(2), dtype=float)
        assert np.abs(reduced - np.asarray(small["image"])).mean() < 3


def test_other_seeds_and_numbers_give_other_scenes():
    captions = {SceneDataset(50, 64, seed).scene(index).caption for seed in range(2) for index in range(50)}
    assert len(captions) > 80


@given(SEEDS, st.booleans())
def test_objects_lie_inside_the_image_and_apart(seed, held_out):
    scene = random_scene(random.Random(seed), held_out)
    for item in scene.objects:
        assert all(item.diameter / 2 <= x <= 1 - item.diameter / 2 for x in item.center)
    assert all(gap(*pair) > 0.01 for pair in itertools.combinations(scene.objects, 2))


@given(SEEDS, st.booleans())
def test_objects_stand_as_the_caption_says(seed, held_out):
    scene = random_scene(random.Random(seed), held_out)
    if scene.kind == "relation":
        (x0, y0), (x1, y1) = (item.center for item in scene.objects)
        holds = {"above": y0 < y1, "below": y0 > y1, "left of": x0 < x1, "right of": x0 > x1}
        assert holds[scene.detail]
        assert pairs_of(Scene("place", scene.objects[:1], "white", False, "center")) != pairs_of(
            Scene("place", scene.objects[1:], "white", False, "center")
        )
    elif scene.kind == "count":
        assert len(scene.objects) == COUNTS[scene.detail]
        assert len({item.name for item in scene.objects}) == 1
    else:
        x, y = scene.objects[0].center
        assert abs(x - PLACES[scene.detail][0]) <= 0.04
        assert abs(y - PLACES[scene.detail][1]) <= 0.04


@given(SEEDS, st.booleans())
def test_captions_use_known_words_only(seed, held_out):
    assert set(random_scene(random.Random(seed), held_out).caption.split()) <= set(scene_words())


@pytest.mark.parametrize(
    ("scene", "caption"),
    [
        (("place", "red circle", "top left", True), "a small red circle in the top left on a gray background"),
        (("count", "blue cross", "two", False), "two small blue crosses"),
        (("count", "cyan square", "four", True), "four small cyan squares on a gray background"),
    ],
)
def test_captions_are_plain_english(scene, caption):
    kind, look, detail, says_background = scene
    item = SceneObject("small", *look.split(), (0.5, 0.5), 0.2)
    assert Scene(kind, (item,), "gray", says_background, detail).caption == caption


def test_relations_name_both_objects_in_order():
    first, second = (
        SceneObject("small", "red", "circle", (0.3, 0.5), 0.2),
        SceneObject("large", "blue", "cross", (0.7, 0.5), 0.3),
    )
    scene = Scene("relation", (first, second), "white", False, "left of")
    assert scene.caption == "a small red circle left of a large blue cross"


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", SIZES)
def test_shapes_are_drawn_where_and_as_large_as_they_are(shape, size):
    item = SceneObject(size, "red", shape, (0.4, 0.6), SIZES[size])
    pixels = np.asarray(Scene("place", (item,), "white", False, "center").render(100))
    rows, columns = np.nonzero((pixels == COLORS["red"]).all(axis=2))
    assert np.ptp(columns) == pytest.approx(100 * SIZES[size], abs=3)
    assert (columns.min() + columns.max()) / 2 == pytest.approx(40, abs=1)
    assert (rows.min() + rows.max()) / 2 == pytest.approx(60, abs=1.5)
    assert tuple(pixels[0, 0]) == BACKGROUNDS["white"]


def test_a_shape_that_does_not_exist_is_named():
    with pytest.raises(ValueError, match=r"shape \('star'\) must be one of circle, square, triangle, cross"):
        draw_shape(None, "star", (0.5, 0.5), 0.2, "red", 10)


@pytest.mark.parametrize("index", [-1, 5])
def test_numbers_beyond_the_end_are_index_errors(index):
    with pytest.raises(IndexError, match=f"scene {index} of 5"):
        SceneDataset(5, 64)[index]


@pytest.mark.parametrize("arguments", [(0, 64), (5, 8)])
def test_sizes_that_make_no_sense_are_refused(arguments):
    with pytest.raises(ValueError, match="must be at least 1 and resolution"):
        SceneDataset(*arguments)
