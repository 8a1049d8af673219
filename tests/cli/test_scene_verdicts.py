"""Which images show the scene of their prompt."""

from pqdiff.cli.scene_verdicts import EXAMPLE, knows_scenes_only, scene_notes, wrong_attributes
from pqdiff.data.images.reading import to_tensor
from pqdiff.data.scenes.captions import parse_caption
from pqdiff.data.scenes.tokenizer import build_scene_tokenizer
from tests.tiny import tiny_tokenizer

CIRCLE = EXAMPLE
CROSSES = "two small blue crosses on a black background"
FOX = "a red fox"


def test_scenes_are_judged_by_their_pixels():
    scene = parse_caption(CIRCLE)
    pixels = to_tensor(scene.render(64))
    assert wrong_attributes(CIRCLE, pixels) == []
    assert wrong_attributes(CIRCLE.upper(), pixels) == []
    assert wrong_attributes(CIRCLE.replace("red", "green"), pixels) == ["color"]
    assert wrong_attributes(CIRCLE.replace("above", "below"), pixels) == ["position"]
    assert wrong_attributes(FOX, pixels) is None


def test_notes_name_what_is_no_scene_and_what_training_never_showed():
    assert scene_notes([CIRCLE]) == []
    assert len(scene_notes([FOX, "a dog", CIRCLE])) == 1
    assert scene_notes([CROSSES, CROSSES]) == ["The training scenes contain no blue cross."]


def test_only_tokenizers_of_scenes_are_taken_for_such(tmp_path):
    assert not knows_scenes_only(tiny_tokenizer())
    assert knows_scenes_only(build_scene_tokenizer(tmp_path))
