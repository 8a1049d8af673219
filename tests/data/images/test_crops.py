"""Images are resized and cropped as every caller did it when each had its own code; crops are what was planned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pqdiff.data.images.crops import (
    covering_size,
    crop_and_resize,
    cut,
    plan_crops,
    resize_and_crop,
    resize_to_cover,
)

LANCZOS = Image.Resampling.LANCZOS
SIDES = st.integers(3, 400)
SMALL_SIDES = st.integers(1, 90)
PLACES = st.tuples(st.floats(0, 1), st.floats(0, 1))


def noise(width, height):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def same(first, second):
    return first.size == second.size and first.tobytes() == second.tobytes()


# The four implementations that there were, word for word where pixels depend on it.


def center_square_of_metrics(image, resolution, crop=True):
    scale = resolution / min(image.size)
    size = tuple(max(resolution, round(side * scale)) for side in image.size)
    image = image.resize(size, LANCZOS)
    if not crop:
        return image
    left, top = ((side - resolution) // 2 for side in image.size)
    return image.crop((left, top, left + resolution, top + resolution))


def cover_of_samples(image, size, place):
    height, width = size
    if image.size == (width, height):
        return image
    scale = max(width / image.width, height / image.height)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    image = image.resize(scaled, LANCZOS)
    left, top = round((scaled[0] - width) * place[0]), round((scaled[1] - height) * place[1])
    return image.crop((left, top, left + width, top + height))


def corners_of_cache(size, target, count, seed):
    (width, height), (target_height, target_width) = size, target
    scale = max(target_width / width, target_height / height)
    resized = max(target_width, round(width * scale)), max(target_height, round(height * scale))
    slack = np.array([resized[0] - target_width, resized[1] - target_height])
    corners = [slack // 2, *np.random.default_rng(seed).integers(0, slack + 1, (count - 1, 2))]
    return resized, [tuple(corner.tolist()) for corner in corners]


def zoom_of_autoencoders(image, side, resolution, x, y):
    left, top = round((image.width - side) * x), round((image.height - side) * y)
    box = (left, top, left + side, top + side)
    if side == resolution:
        return image.crop(box)
    return image.resize((resolution, resolution), LANCZOS, box=box)


@given(SMALL_SIDES, SMALL_SIDES, st.integers(1, 64))
@settings(deadline=None)
def test_the_center_square_has_the_pixels_of_the_metrics(width, height, resolution):
    image = noise(width, height)
    assert same(resize_and_crop(image, resolution), center_square_of_metrics(image, resolution))
    assert same(resize_to_cover(image, resolution), center_square_of_metrics(image, resolution, crop=False))


@given(SMALL_SIDES, SMALL_SIDES, st.sampled_from([(32, 32), (24, 48), (48, 24), (17, 40)]), PLACES)
@settings(deadline=None)
def test_a_placed_crop_has_the_pixels_of_the_training_samples(width, height, target, place):
    image = noise(width, height)
    for somewhere in (place, (0.5, 0.5)):
        assert same(resize_and_crop(image, target, somewhere), cover_of_samples(image, target, somewhere))


def test_an_image_of_the_right_size_keeps_its_pixels():
    image = noise(40, 24)
    assert same(resize_and_crop(image, (24, 40), (0.3, 0.9)), image)


@given(SIDES, SIDES, st.sampled_from([(64, 64), (48, 96), (96, 48)]), st.integers(1, 4), st.integers(0, 9))
def test_planned_crops_are_where_the_cache_had_them(width, height, target, count, seed):
    crops = plan_crops((width, height), target, count, seed=[seed, 3])
    resized, corners = corners_of_cache((width, height), target, count, [seed, 3])
    assert [(crop.left, crop.top) for crop in crops] == corners
    assert {(crop.resized_width, crop.resized_height) for crop in crops} == {resized}


@given(st.integers(8, 90), st.integers(8, 90), st.integers(1, 90), st.integers(4, 40), PLACES)
@settings(deadline=None)
def test_a_zoomed_crop_has_the_pixels_of_the_autoencoder_trainer(width, height, side, resolution, place):
    image, side = noise(width, height), min(side, width, height)
    for length in {side, min(resolution, width, height)}:
        expected = zoom_of_autoencoders(image, length, resolution, *place)
        assert same(crop_and_resize(image, length, resolution, place), expected)


@pytest.mark.parametrize("side", [0, 21])
def test_a_zoomed_crop_must_fit_the_image(side):
    with pytest.raises(ValueError, match=rf"side \({side}\) must be between 1 and 20"):
        crop_and_resize(noise(30, 20), side, 8, (0, 0))


@given(SIDES, SIDES, SIDES, SIDES)
def test_the_covering_size_covers_and_is_the_smallest_that_does(width, height, target_height, target_width):
    size = covering_size((width, height), (target_height, target_width))
    assert size[0] >= target_width
    assert size[1] >= target_height
    assert size[0] == target_width or size[1] == target_height


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64))
def test_covering_a_square_brings_the_shorter_side_to_its_length_and_keeps_the_shape(width, height, resolution):
    size = covering_size((width, height), resolution)
    assert min(size) == resolution
    longer = max(width, height) * resolution / min(width, height)
    assert abs(max(size) - longer) <= 0.5
    assert (size[0] >= size[1]) == (width >= height) or abs(longer - resolution) <= 0.5


@pytest.mark.parametrize(("size", "box"), [((30, 10), (10, 0, 20, 10)), ((10, 31), (0, 10, 10, 20))])
def test_the_default_crop_is_the_center(size, box):
    assert same(resize_and_crop(noise(*size), 10), noise(*size).crop(box))


@pytest.mark.parametrize(("place", "box"), [((0, 0), (0, 0, 10, 10)), ((1, 1), (20, 0, 30, 10))])
def test_places_go_from_the_left_to_the_right(place, box):
    assert same(resize_and_crop(noise(30, 10), 10, place), noise(30, 10).crop(box))


def test_resizing_is_lanczos():
    assert same(resize_to_cover(noise(60, 40), 20), noise(60, 40).resize((30, 20), LANCZOS))


@given(SIDES, SIDES, st.sampled_from([(64, 64), (48, 96), (96, 48)]), st.integers(1, 4), st.booleans())
def test_crops_lie_in_the_image_that_just_covers_them(width, height, target, count, flip):
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
