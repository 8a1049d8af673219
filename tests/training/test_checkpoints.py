"""Checkpoints are complete or not there."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pqdiff.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint


@pytest.fixture
def training():
    """An accelerator with a model and its optimizer after one step, and an EMA."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 0.1))
    step(model, optimizer)
    return accelerator, model, optimizer, {"model": nn.Linear(2, 2)}


def step(model, optimizer):
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def values(model, optimizer, ema):
    state = [*model.state_dict().values(), *ema["model"].state_dict().values()]
    return [t.clone() for t in [*state, *(v for s in optimizer.state_dict()["state"].values() for v in s.values())]]


def test_what_is_saved_comes_back(training, tmp_path):
    accelerator, model, optimizer, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 7, ema, 2)
    saved, drawn = values(model, optimizer, ema), torch.rand(3)
    step(model, optimizer)
    nn.init.zeros_(ema["model"].weight)
    assert find_checkpoint(tmp_path) == (folder, 7)
    assert load_checkpoint(accelerator, folder, ema) == 7
    assert all(torch.equal(a, b) for a, b in zip(values(model, optimizer, ema), saved, strict=True))
    assert torch.equal(torch.rand(3), drawn)


def test_old_ones_are_removed_down_to_the_limit(training, tmp_path):
    accelerator, _, _, ema = training
    for number in (1, 2, 9, 10):
        save_checkpoint(accelerator, tmp_path, number, ema, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000009", "checkpoint-00000010"]


def test_folders_that_are_not_complete_are_not_found_and_give_way(training, tmp_path):
    accelerator, _, _, ema = training
    complete = save_checkpoint(accelerator, tmp_path, 3, ema, 5)
    for name in (".checkpoint-00000004.partial", ".checkpoint-00000001.partial"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(tmp_path) == (complete, 3)
    save_checkpoint(accelerator, tmp_path, 4, ema, 5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-00000003", "checkpoint-00000004"]
    assert not (tmp_path / "checkpoint-00000004" / "inside").exists()


def test_the_same_step_may_be_saved_again(training, tmp_path):
    accelerator, model, optimizer, ema = training
    save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    step(model, optimizer)
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    saved = values(model, optimizer, ema)
    step(model, optimizer)
    load_checkpoint(accelerator, folder, ema)
    assert all(torch.equal(a, b) for a, b in zip(values(model, optimizer, ema), saved, strict=True))


def test_the_newest_is_the_one_with_the_highest_step(tmp_path):
    assert find_checkpoint(tmp_path / "nowhere") is None
    for name in ("checkpoint-9", "checkpoint-00000010", "checkpoint-x", "checkpoint-11-old", ".checkpoint-12.partial"):
        (tmp_path / name).mkdir()
    assert find_checkpoint(tmp_path) == (tmp_path / "checkpoint-00000010", 10)


def test_another_number_of_processes_goes_on_and_says_so(training, tmp_path, capsys):
    """Clusters give back fewer or more devices than they took."""
    accelerator, model, optimizer, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    saved = values(model, optimizer, ema)
    (folder / "progress.json").write_text(json.dumps({"step": 3, "processes": 2}))
    step(model, optimizer)
    assert load_checkpoint(accelerator, folder, ema) == 3
    assert all(torch.equal(a, b) for a, b in zip(values(model, optimizer, ema), saved, strict=True))
    assert "checkpoint-00000003 was saved by 2 processes and is loaded by 1" in capsys.readouterr().out


@pytest.mark.parametrize("file", ["progress.json", "model.safetensors", "optimizer.bin", "ema_model.safetensors"])
def test_a_checkpoint_that_lost_a_file_is_named(training, tmp_path, file):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    (folder / file).unlink()
    with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it"):
        load_checkpoint(accelerator, folder, ema)


def test_a_checkpoint_of_another_model_is_named(training, tmp_path):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    shutil.copy(folder / "ema_model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it") as error:
        load_checkpoint(accelerator, folder, ema)
    assert "\n" not in str(error.value)
