"""SSIMULACRA2 against its package, on what codecs, blur and noise do."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from pqdiff.data.images.reading import to_image, to_tensor
from pqdiff.metrics import ssimulacra2 as module
from pqdiff.metrics.ssimulacra2 import ssimulacra2
from tests.metrics.test_reconstruction import pair


def distortions(image):
    yield image
    for quality in (5, 50, 95):
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        yield Image.open(file).convert("RGB")
    yield image.filter(ImageFilter.GaussianBlur(2))
    pixels = np.asarray(image)
    yield Image.fromarray(pixels ^ np.random.default_rng(0).integers(0, 2, pixels.shape, dtype=np.uint8))
    yield to_image(pair((1, 3, image.height, image.width), noise=50)[0][0])


def file_of(image):
    file = io.BytesIO()
    image.save(file, "PPM")
    file.seek(0)
    return file


@pytest.mark.parametrize("size", [(8, 9), (57, 231), (100, 64), (227, 225)])
def test_numbers_are_those_of_the_package(size):
    package = pytest.importorskip("ssimulacra2")
    image = to_image(pair((1, 3, *size))[1][0])
    for distorted in distortions(image):
        expected = package.compute_ssimulacra2(file_of(image), file_of(distorted))
        value = ssimulacra2(to_tensor(distorted)[None], to_tensor(image)[None]).item()
        assert value == pytest.approx(expected, abs=0.01)


def test_strips_do_not_change_the_number(monkeypatch):
    batch = pair((1, 3, 70, 40))
    whole = ssimulacra2(*batch).item()
    monkeypatch.setattr(module, "_STRIP", 400)
    assert ssimulacra2(*batch).item() == pytest.approx(whole, abs=1e-4)


def test_one_pixel_costs_little_and_all_of_them_much():
    target = torch.full((1, 3, 32, 32), 128, dtype=torch.uint8)
    preds = target.clone()
    preds[..., 5, 5] = 130
    assert 90 < ssimulacra2(preds, target).item() < 100
    assert ssimulacra2(255 - pair((1, 3, 32, 32))[1], pair((1, 3, 32, 32))[1]).item() < 0
