"""Which device a command runs on."""

import pytest
import torch

from pqdiff.devices import choose_device


def test_a_device_that_is_there_is_taken():
    assert choose_device("cpu") == "cpu"


def test_without_a_name_an_accelerator_is_taken_or_the_cpu():
    device = choose_device(None)
    assert torch.zeros(1, device=device).item() == 0
    if not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        assert device == "cpu"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", "meta"])
def test_a_device_that_cannot_be_used_is_named(name):
    with pytest.raises(ValueError, match=rf"device \({name}\) cannot be used: ") as raised:
        choose_device(name)
    assert "\n" not in str(raised.value)
