"""Codecs: names, files that are what the format says, rates that are kept."""

import io

import pytest
from PIL import Image

from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.metrics.codecs import Codec

NAMES = ("jpeg", "jpeg444", "webp", "avif")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return SceneDataset(1, 64)[0]["image"]


@pytest.mark.parametrize("text", ["jpeg:75", "JPEG444:100", "webp:1", "avif@0.5bpp", "jpeg@2bpp"])
def test_names_are_read_and_written(text):
    assert str(Codec.parse(text)) == text.lower()


@pytest.mark.parametrize("text", ["jpeg", "jpeg:", "photo:75", "user/jpeg:75", "webp@2", "pqgan-f8-d128-s64-k512"])
def test_other_texts_are_no_codecs(text):
    assert Codec.parse(text) is None


@pytest.mark.parametrize("name", NAMES)
def test_files_are_those_of_the_format_and_give_the_image_back(name, image):
    codec = Codec(name, 90)
    file = codec.compress(image)
    assert Image.open(io.BytesIO(file)).format == name.removesuffix("444").upper()
    result = codec.decompress(file)
    assert (result.mode, result.size) == ("RGB", image.size)
    assert len(file) > len(Codec(name, 10).compress(image))


def test_colors_have_full_resolution_in_jpeg444_only(image):
    assert len(Codec("jpeg444", 75).compress(image)) > len(Codec("jpeg", 75).compress(image))


@pytest.mark.parametrize("name", NAMES)
def test_a_rate_is_used_and_not_exceeded(name, image):
    codec = Codec(name, rate=3.0)
    bits = 8 * len(codec.compress(image)) / (image.width * image.height)
    assert bits <= 3.0
    sizes = [len(codec._file(image, quality)) for quality in range(1, 101)]
    assert 8 * max(size for size in sizes if 8 * size <= 3.0 * 64 * 64) / 64**2 == pytest.approx(bits, rel=0.05)


def test_a_rate_that_no_file_has_gives_the_smallest_file(image):
    assert Codec("jpeg", rate=0.01).compress(image) == Codec("jpeg", 1).compress(image)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "jpg", "quality": 75}, "did you mean .jpeg."),
        ({"name": "jpeg"}, "quality or a rate"),
        ({"name": "jpeg", "quality": 0}, r"quality \(0\)"),
        ({"name": "webp", "quality": 101}, r"quality \(101\)"),
        ({"name": "avif", "rate": 0.0}, r"rate \(0.0\)"),
    ],
)
def test_bad_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Codec(**arguments)
