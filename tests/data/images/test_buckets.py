"""Buckets have the promised areas and sides, and images go to the nearest."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pqdiff.data.images.buckets import bucket_sizes, nearest_bucket


@given(st.integers(1, 16), st.sampled_from([8, 32, 64]), st.floats(1, 4))
def test_buckets_keep_area_ratio_and_divisibility(steps, multiple, max_ratio):
    resolution = steps * multiple
    sizes = bucket_sizes(resolution, multiple, max_ratio)
    assert (resolution, resolution) in sizes
    assert len(set(sizes)) == len(sizes)
    assert set(sizes) == {(width, height) for height, width in sizes}
    for height, width in sizes:
        assert height % multiple == width % multiple == 0
        assert max(height, width) / min(height, width) <= max_ratio
        assert 0.75 <= height * width / resolution**2 <= 1.25


def test_sizes_of_stable_diffusion_2():
    sizes = [(576, 1024), (640, 896), (704, 832), (768, 768), (832, 704), (896, 640), (1024, 576)]
    assert bucket_sizes(768, 64) == sizes


@given(st.integers(10, 5000), st.integers(10, 5000))
def test_the_nearest_bucket_is_nearest(width, height):
    sizes = bucket_sizes(512, 64)
    found = nearest_bucket(width, height, sizes)
    distances = {size: abs(math.log(size[1] / size[0]) - math.log(width / height)) for size in sizes}
    assert distances[found] <= min(distances.values()) + 1e-12


@pytest.mark.parametrize(
    ("size", "bucket"), [((512, 512), (512, 512)), ((900, 100), (384, 704)), ((1, 9), (704, 384))]
)
def test_extreme_images_go_to_the_last_buckets(size, bucket):
    assert nearest_bucket(*size, bucket_sizes(512, 64)) == bucket


@pytest.mark.parametrize("arguments", [(500, 64), (32, 64), (0, 64), (512, 0), (512, 64, 0.5)])
def test_arguments_that_do_not_fit_are_refused(arguments):
    with pytest.raises(ValueError, match=r"resolution \(|max_ratio \("):
        bucket_sizes(*arguments)


def test_no_buckets_are_refused():
    with pytest.raises(ValueError, match="buckets"):
        nearest_bucket(3, 4, [])
