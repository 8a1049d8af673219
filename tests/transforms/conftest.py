import pytest
import torch

from tests.autoencoders import KINDS, build


@pytest.fixture(params=KINDS)
def autoencoder(request):
    return build(request.param)


@pytest.fixture
def images():
    torch.manual_seed(1)
    return torch.rand(2, 3, 32, 48) * 2 - 1
