"""Averages follow parameters and buffers."""

import pytest
import torch
from torch import nn

from pqdiff.training.ema import EMA


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


def step(model, amount=1.0):
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor += 1 if tensor.dtype == torch.int64 else amount


def test_parameters_and_buffers_are_followed(model):
    ema = EMA(model, 0.5)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model)
    ema.update(model, step=1000)
    for name, found in ema.model.state_dict().items():
        expected = before[name] + (1 if found.dtype == torch.int64 else 0.5)
        torch.testing.assert_close(found, expected, msg=name)


def test_the_model_itself_stays(model):
    ema = EMA(model, 0.5)
    step(model)
    before = [tensor.clone() for tensor in model.state_dict().values()]
    ema.update(model, 0)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before, strict=True))
    assert not any(p.requires_grad for p in ema.model.parameters())
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(("number", "decay"), [(0, 0.1), (1, 2 / 11), (5, 0.4), (10**6, 0.9)])
def test_the_first_steps_forget_faster(model, number, decay):
    ema = EMA(model, 0.9)
    before = model[0].weight.detach().clone()
    step(model)
    ema.update(model, number)
    torch.testing.assert_close(ema.model[0].weight, before + (1 - decay))


def test_the_ema_of_half_precision_models_are_full_precision(model):
    ema = EMA(model.bfloat16(), 0.999)
    assert ema.model[0].weight.dtype == torch.float32
    ema.update(model, 10**6)  # without an error about types
    torch.testing.assert_close(ema.model[0].weight, model[0].weight.float())


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0])
def test_a_decay_out_of_range_is_refused(model, decay):
    with pytest.raises(ValueError, match=r"decay .* must be between 0 and 1"):
        EMA(model, decay)
