"""Captions of scenes read back."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.captions import parse_caption
from pqdiff.data.scenes.checker import check_scene, read_scenes
from pqdiff.data.scenes.scenes import random_scene, scene_prompts
from pqdiff.data.scenes.tokenizer import scene_words

SCENES = st.builds(lambda seed, held_out: random_scene(random.Random(seed), held_out), st.integers(0), st.booleans())


@given(SCENES)
def test_every_caption_gives_back_its_scene(scene):
    parsed = parse_caption(scene.caption)
    assert parsed.caption == scene.caption
    assert (parsed.kind, parsed.detail, parsed.says_background) == (scene.kind, scene.detail, scene.says_background)
    assert [item.name for item in parsed.objects] == [item.name for item in scene.objects]
    assert parsed.background == (scene.background if scene.says_background else "white")


@given(st.lists(st.sampled_from(scene_words()), max_size=14).map(" ".join))
def test_what_is_read_is_what_was_said(text):
    scene = parse_caption(text)
    assert scene is None or scene.caption == text


@given(SCENES, st.data())
def test_a_caption_with_a_word_changed_is_another_scene_or_none(scene, data):
    words = scene.caption.split()
    place = data.draw(st.integers(0, len(words) - 1))
    words[place] = data.draw(st.sampled_from([*scene_words(), "pink", "", "an"]))
    parsed = parse_caption(" ".join(words))
    assert parsed is None or parsed.caption.split() == [word for word in words if word]


@given(st.text())
def test_any_text_can_be_asked_about(text):
    assert parse_caption(text) is None


def test_capitals_and_spaces_do_not_matter():
    plain = parse_caption("two large blue crosses on a black background")
    assert plain == parse_caption("  Two large\nBLUE   crosses on a black background ")
    assert len(plain.objects) == 2


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a red circle in the center",
        "a small red circle",
        "a small red circle in the center.",
        "two small red crosss",
        "two small red circlees",
        "two small red circle",
        "five small red circles",
        "a small red circle above a large blue square on a red background",
        "a small red circle above a large blue square above a small red circle",
    ],
)
def test_other_texts_are_no_scenes(text):
    assert parse_caption(text) is None


def test_an_image_of_what_was_read_is_right():
    scenes = [parse_caption(scene.caption) for scene in scene_prompts(60)]
    assert {scene.kind for scene in scenes} == {"place", "relation", "count"}
    for scene in scenes:
        reading = read_scenes(to_tensor(scene.render(64))[None])[0]
        assert check_scene(reading, scene)["all"], scene.caption
