"""Whatever happens to a checkpoint, a run resumes from it, passes over it, or says in one line that it cannot; seeded, so
that a failure comes again."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from pqdiff.training.checkpoints import find_checkpoint, load_checkpoint, save_checkpoint
from pqdiff.training.run_folder import RunFolder
from tests.damage import damage, damage_json

FILES = ["progress.json", "model.safetensors", "optimizer.bin", "ema.safetensors", "random_states_0.pkl"]


@pytest.mark.parametrize("count", [20, pytest.param(3000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("file", FILES)
def test_damaged_checkpoints_are_read_or_refused_in_one_line(tmp_path, file, count):
    accelerator = Accelerator(cpu=True)
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), 0.1))
    model(torch.randn(4, 3)).sum().backward()
    optimizer.step()
    modules = {"ema": nn.Linear(2, 2)}
    run = RunFolder(tmp_path)
    folder = save_checkpoint(accelerator, run, 7, modules, 2)
    content, generator = (folder / file).read_bytes(), np.random.default_rng(0)
    names = sorted(path.name for path in folder.iterdir())
    for number in range(count):
        if file == "progress.json" and number % 2:
            (folder / file).write_text(json.dumps(damage_json(json.loads(content), generator)))
        else:
            (folder / file).write_bytes(damage(content, generator))
        assert find_checkpoint(run) in [((folder, 7), []), (None, [folder])]
        try:
            load_checkpoint(accelerator, folder, modules)
        except ValueError as error:
            message = str(error)
            assert message.startswith(f"{folder}: cannot resume from it"), message
            assert message.isprintable(), message
    (folder / file).write_bytes(content)
    assert load_checkpoint(accelerator, folder, modules) == 7
    assert names == sorted(path.name for path in folder.iterdir())
