"""Checkpoints are complete or not there."""

import json
import os
import pathlib
import pickle
import shutil

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from pqdiff.training import checkpoints
from pqdiff.training.checkpoints import find_checkpoint, load_checkpoint
from pqdiff.training.run_folder import MARKER, RunFolder
from tests.processes import run_pair
from tests.training.support import free_port


@pytest.fixture
def training():
    """An accelerator with a model and its optimizer after one step, and an EMA."""
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 0.1))
    step(model, optimizer)
    return accelerator, model, optimizer, {"ema_model": nn.Linear(2, 2)}


def save_checkpoint(accelerator, folder, *arguments):
    return checkpoints.save_checkpoint(accelerator, RunFolder(folder), *arguments)


def names(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != MARKER)


def step(model, optimizer):
    model(torch.randn(4, 3)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def values(model, optimizer, ema):
    state = [*model.state_dict().values(), *ema["ema_model"].state_dict().values()]
    return [t.clone() for t in [*state, *(v for s in optimizer.state_dict()["state"].values() for v in s.values())]]


def test_what_is_saved_comes_back(training, tmp_path):
    accelerator, model, optimizer, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 7, ema, 2)
    saved, drawn = values(model, optimizer, ema), torch.rand(3)
    step(model, optimizer)
    nn.init.zeros_(ema["ema_model"].weight)
    assert find_checkpoint(RunFolder(tmp_path)) == ((folder, 7), [])
    assert load_checkpoint(accelerator, folder, ema) == 7
    assert all(torch.equal(a, b) for a, b in zip(values(model, optimizer, ema), saved, strict=True))
    assert torch.equal(torch.rand(3), drawn)


def _save_where_one_rank_cannot(rank, folder, port):
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in place.items()})
    accelerator = Accelerator(cpu=True)
    run = RunFolder(folder, lock=not rank)
    for step, failing in ((1, 0), (2, 1)):
        if rank == failing:  # the disk is full
            accelerator.save_state = lambda _: (_ for _ in ()).throw(OSError("No space left on device"))
        elif "save_state" in vars(accelerator):
            del accelerator.save_state
        with pytest.raises(OSError, match=rf"checkpoint-0000000{step}: cannot be written \(No space left on device\)"):
            checkpoints.save_checkpoint(accelerator, run, step, {}, 2)
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_all_ranks_stop_if_one_cannot_write(tmp_path):
    run_pair(_save_where_one_rank_cannot, tmp_path, free_port())
    assert find_checkpoint(RunFolder(tmp_path)) == (None, [])


def test_old_ones_are_removed_down_to_the_limit(training, tmp_path):
    accelerator, _, _, ema = training
    for number in (1, 2, 9, 10):
        save_checkpoint(accelerator, tmp_path, number, ema, 2)
    assert names(tmp_path) == ["checkpoint-00000009", "checkpoint-00000010"]


def test_folders_that_are_not_complete_are_not_found_and_give_way(training, tmp_path):
    accelerator, _, _, ema = training
    complete = save_checkpoint(accelerator, tmp_path, 3, ema, 5)
    for name in ("checkpoint-00000004", "checkpoint-00000001"):
        RunFolder(tmp_path).claim(name)
    for name in (".checkpoint-00000004.partial", ".checkpoint-00000001.partial"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "model.safetensors").write_bytes(b"half")
    assert find_checkpoint(RunFolder(tmp_path)) == ((complete, 3), [])
    save_checkpoint(accelerator, tmp_path, 4, ema, 5)
    assert names(tmp_path) == ["checkpoint-00000003", "checkpoint-00000004"]
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


def test_the_newest_complete_one_of_the_run_itself_is_found(training, tmp_path):
    accelerator, _, _, ema = training
    assert find_checkpoint(RunFolder(tmp_path)) == (None, [])
    for number in (9, 10, 11, 12):
        save_checkpoint(accelerator, tmp_path, number, ema, 9)
    empty, cut = tmp_path / "checkpoint-00000012", tmp_path / "checkpoint-00000011" / "random_states_0.pkl"
    shutil.rmtree(empty)
    empty.mkdir()
    cut.write_bytes(cut.read_bytes()[:-1])
    for name in ("checkpoint-00000099", "checkpoint-x", "checkpoint-13-old", ".checkpoint-00000014.partial"):
        (tmp_path / name).mkdir()  # not of this run
    assert find_checkpoint(RunFolder(tmp_path)) == ((tmp_path / "checkpoint-00000010", 10), [empty, cut.parent])


def test_another_number_of_processes_goes_on_and_says_so(training, tmp_path, capsys):
    """Clusters give back fewer or more devices than they took."""
    accelerator, model, optimizer, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    saved = values(model, optimizer, ema)
    (folder / "progress.json").write_text(json.dumps({"step": 3, "processes": 2, "files": {"a": 1}}))
    step(model, optimizer)
    assert load_checkpoint(accelerator, folder, ema) == 3
    assert all(torch.equal(a, b) for a, b in zip(values(model, optimizer, ema), saved, strict=True))
    assert "checkpoint-00000003 was saved by 2 processes and is loaded by 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    "file", ["progress.json", "model.safetensors", "optimizer.bin", "ema_model.safetensors", "random_states_0.pkl"]
)
def test_a_checkpoint_that_lost_a_file_is_named(training, tmp_path, file):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    (folder / file).unlink()
    with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it"):
        load_checkpoint(accelerator, folder, ema)


@pytest.mark.parametrize("change", [{"step": "3"}, {"step": None}, {"processes": 10**400}, {"files": {}}])
def test_a_damaged_record_of_progress_is_named(training, tmp_path, change):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    progress = json.loads((folder / "progress.json").read_text())
    (folder / "progress.json").write_text(json.dumps({**progress, **change}))
    assert find_checkpoint(RunFolder(tmp_path)) == (None, [folder])
    with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it"):
        load_checkpoint(accelerator, folder, ema)


def test_a_checkpoint_of_another_model_is_named(training, tmp_path):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    shutil.copy(folder / "ema_model.safetensors", folder / "model.safetensors")
    with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it") as error:
        load_checkpoint(accelerator, folder, ema)
    assert "\n" not in str(error.value)


class _Payload:
    """What makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return pathlib.Path.touch, (self.path,)


PICKLES = ["optimizer.bin", "random_states_0.pkl", "custom_checkpoint_0.pkl", "pytorch_model.bin", "scaler.pt"]
PICKLES += ["scheduler.bin", "sampler.bin", "dl_state_dict.bin"]


@pytest.mark.parametrize("protocol", ["torch", "pickle"])
@pytest.mark.parametrize("file", PICKLES)
def test_a_planted_pickle_does_not_run_code(training, tmp_path, file, protocol):
    accelerator, _, _, ema = training
    folder, trap = save_checkpoint(accelerator, tmp_path, 3, ema, 2), tmp_path / "trap"
    if protocol == "torch":
        torch.save({"state": _Payload(trap)}, folder / file)
    else:
        (folder / file).write_bytes(pickle.dumps(_Payload(trap)))
    if file == "pytorch_model.bin":
        (folder / "model.safetensors").unlink()
    if file in ("scaler.pt", "scheduler.bin", "sampler.bin", "dl_state_dict.bin"):  # nothing asks for them
        load_checkpoint(accelerator, folder, ema)
    else:
        with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it") as error:
            load_checkpoint(accelerator, folder, ema)
        assert "\n" not in str(error.value)
    assert not trap.exists()
    pickle.loads(pickle.dumps(_Payload(trap)))
    assert trap.exists()  # the trap works


def test_libraries_whose_checkpoints_run_code_cannot_resume(training, tmp_path, monkeypatch):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    monkeypatch.setattr(type(accelerator), "distributed_type", DistributedType.DEEPSPEED)
    with pytest.raises(ValueError, match="checkpoints of DEEPSPEED can run code when they are read"):
        load_checkpoint(accelerator, folder, ema)


def test_random_states_that_are_not_those_of_torch_are_refused(training, tmp_path):
    accelerator, _, _, ema = training
    folder = save_checkpoint(accelerator, tmp_path, 3, ema, 2)
    torch.save({"step": 3}, folder / "random_states_0.pkl")
    with pytest.raises(ValueError, match="checkpoint-00000003: cannot resume from it"):
        load_checkpoint(accelerator, folder, ema)
