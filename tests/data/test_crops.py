"""Crops lie in the resized photo, repeat with the seed, and are what was planned."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pqdiff.data.crops import cut, plan_crops
from pqdiff.data.images import resize_and_crop

SIDES = st.integers(3, 400)


@given(SIDES, SIDES, st.sampled_from([(64, 64), (48, 96), (96, 48)]), st.integers(1, 4), st.booleans())
def test_crops_lie_in_the_photo_that_just_covers_them(width, height, target, count, flip):
    crops = plan_crops((width, height), target, count, flip, seed=3)
    assert len(crops) == count * (1 + flip)
    for crop in crops:
        assert (crop.height, crop.width) == target
        assert 0 <= crop.left <= crop.resized_width - crop.width
        assert 0 <= crop.top <= crop.resized_height - crop.height
        assert crop.resized_width == crop.width or crop.resized_height == crop.height
        assert (crop.original_width, crop.original_height) == (width, height)


def test_crops_repeat_with_their_seed_alone():
    plan = [plan_crops((500, 300), (64, 64), 5, seed=[seed, item]) for seed, item in ((0, 1), (0, 1), (0, 2), (1, 1))]
    assert plan[0] == plan[1]
    assert plan[0] != plan[2]
    assert plan[0] != plan[3]
    assert plan[0][0] == plan[2][0]  # the center
    assert len({crop.left for crop in plan[0]}) > 2


def test_more_crops_begin_with_the_same_ones():
    assert plan_crops((500, 300), (64, 64), 5, seed=1)[:3] == plan_crops((500, 300), (64, 64), 3, seed=1)


def test_the_first_crop_is_the_center_that_metrics_use():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (47, 80, 3), dtype=np.uint8))
    (part,) = cut(image, plan_crops(image.size, (32, 32)))
    assert np.array_equal(part, resize_and_crop(image, 32))


def test_a_mirror_image_is_the_crop_before_it_mirrored():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8))
    crops = plan_crops(image.size, (32, 32), 2, flip=True)
    assert [crop.flip for crop in crops] == [0, 1, 0, 1]
    parts = [np.asarray(part) for part in cut(image, crops)]
    for plain, mirrored in (parts[:2], parts[2:]):
        assert np.array_equal(plain[:, ::-1], mirrored)


def test_no_crops_are_refused():
    with pytest.raises(ValueError, match=r"count \(0\)"):
        plan_crops((10, 10), (8, 8), 0)
