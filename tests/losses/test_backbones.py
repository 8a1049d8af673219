"""Backbones against networks laid out as torchvision lays them out."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pqdiff.losses.backbones import AlexNetFeatures, VGG16Features
from tests.losses.conftest import sha256


def images(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(0))


def test_taps_of_vgg16_are_the_last_relus_before_pooling(vgg, vgg_file, vgg_digest):
    network = VGG16Features()
    network.weights.load_into(network, vgg_file, vgg_digest)
    outputs = network(images(48, 40))
    assert [tuple(o.shape[1:]) for o in outputs] == [
        (64, 48, 40),
        (128, 24, 20),
        (256, 12, 10),
        (512, 6, 5),
        (512, 3, 2),
    ]
    for output, end in zip(outputs, (4, 9, 16, 23, 30), strict=True):
        torch.testing.assert_close(output, vgg[:end](images(48, 40)))


def test_taps_of_alexnet_are_its_relus(alex, alex_file):
    network = AlexNetFeatures()
    network.weights.load_into(network, alex_file, sha256(alex_file))
    outputs = network(images(71, 64))
    assert [tuple(o.shape[1:]) for o in outputs] == [
        (64, 17, 15),
        (192, 8, 7),
        (384, 3, 3),
        (256, 3, 3),
        (256, 3, 3),
    ]
    for output, end in zip(outputs, (2, 5, 8, 10, 12), strict=True):
        torch.testing.assert_close(output, alex[:end](images(71, 64)))


@pytest.mark.parametrize("backbone", [VGG16Features, AlexNetFeatures])
def test_weights_of_another_network_are_refused(tmp_path, backbone):
    path = tmp_path / "other.safetensors"
    save_file(nn.Conv2d(3, 8, 3).state_dict(), path)
    with pytest.raises(ValueError, match=f"SHA-256 .* must be that of .*{next(iter(backbone.weights.known))[:8]}"):
        backbone.weights.load_into(backbone(), path)
    with pytest.raises(ValueError, match=f"does not hold {backbone.weights.title}"):
        backbone.weights.load_into(backbone(), path, sha256(path))
