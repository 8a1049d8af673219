"""One optimizer step: micro-batches, random numbers, gradients, and losses that are not finite."""

import pytest
import torch
from torch import nn

from pqdiff.adaptation.stages import Stage
from pqdiff.training.randomness import generator_for
from tests.training.loops import Numbers, open_session, train
from tests.training.support import steps_of


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_step_and_batch_saved(tmp_path, value):
    with pytest.raises(ValueError, match=r"not finite at step 3; its batch is in .*nonfinite-step3-rank0\.pt"):
        train(open_session(tmp_path), factors=[1.0, 1.0, value])
    saved = torch.load(tmp_path / "nonfinite-step3-rank0.pt", weights_only=True)
    assert saved["step"] == 3
    assert not saved["loss"].isfinite()
    assert saved["batch"] == {"step": 2, "slots": [0, 1, 2, 3], "captions": ["a"]}


def test_random_numbers_depend_on_seed_step_and_place_in_the_global_batch(tmp_path):
    session = open_session(tmp_path, 2, batch_size=2, gradient_accumulation_steps=2, seed=5)
    model = nn.Linear(1, 1)
    session.prepare({"model": model}, torch.optim.SGD(model.parameters()))
    for step in session.steps(Numbers(), Stage(1, 2, 0.1)):
        for batch in step.micro_batches():
            found = [torch.rand(1, generator=generator) for generator in step.generators("noise")]
            places = [generator_for(5, "noise", step.number, slot) for slot in batch["slots"]]
            assert found == [torch.rand(1, generator=generator) for generator in places]


def test_optimizers_step_once_with_the_mean_gradient_of_the_micro_batches(tmp_path):
    session = open_session(tmp_path, 1, gradient_accumulation_steps=2, max_grad_norm=0)
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    wrapped, optimizer = session.prepare({"model": model}, torch.optim.SGD(model.parameters()))
    for step in session.steps(Numbers(), Stage(1, 1, 0.1)):
        for factor, _ in zip((1, 3), step.micro_batches(), strict=True):
            step.backward(factor * wrapped["model"](torch.ones(1, 1)).sum())
            step.update(optimizer)
            assert (model.weight.item() == before) == (factor == 1)
    assert model.weight.item() == pytest.approx(before - 0.1 * 2)


def test_gradients_are_clipped_to_the_norm(tmp_path):
    session = open_session(tmp_path, 1, max_grad_norm=0.5)
    model = nn.Linear(1, 1, bias=False)
    before = model.weight.item()
    wrapped, optimizer = session.prepare({"model": model}, torch.optim.SGD(model.parameters()))
    for step in session.steps(Numbers(), Stage(1, 1, 0.1)):
        for _ in step.micro_batches():
            step.backward(100 * wrapped["model"](torch.ones(1, 1)).sum())
            step.update(optimizer)
    assert model.weight.item() == pytest.approx(before - 0.1 * 0.5, rel=1e-4)


def test_a_group_with_a_peak_gets_its_part_of_it_and_logged_numbers_are_in_the_line(tmp_path):
    session = open_session(tmp_path, 2, log_steps=2)
    model = nn.Linear(1, 1)
    groups = [{"params": [model.weight], "peak": 3.0}, {"params": [model.bias]}]
    wrapped, optimizer = session.prepare({"model": model}, torch.optim.SGD(groups))
    logged = []
    for step in session.steps(Numbers(), Stage(1, 2, 0.5)):
        assert [group["lr"] for group in optimizer.param_groups] == [1.5, 0.5]
        for _ in step.micro_batches():
            step.backward(wrapped["model"](torch.ones(1, 1)).sum())
        logged.append(step.is_logged)
        step.log(number=step.number)
    assert logged == [False, True]
    (line,) = steps_of(tmp_path)
    assert (line["step"], line["learning_rate"], line["number"]) == (2, 0.5, 1)
