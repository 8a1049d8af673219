"""Whatever mixture of files is in an output folder, only ours change."""

import contextlib
import os
import random
from pathlib import Path

import pytest
import torch

from pqdiff.hub.export import export_for_hub
from pqdiff.training.autoencoders import ModelOptions, initial_autoencoder
from pqdiff.training.publish import PublishOptions
from pqdiff.training.tokenizer_result import save_tokenizer
from tests.tiny import SIDE, tiny_autoencoder, tiny_base_pipeline
from tests.training.loops import open_session, train

HARMLESS = ["photo.png", "notes/deep/a.txt", ".hidden", "my-checkpoint-1", "checkpoint-x/a", "out.log"]
NAMES = [
    *HARMLESS,
    *("config.yaml", "log.jsonl", "data.json", "logs/events", "tokenizer/vocab.json"),
    *("init/config.json", "init/notes.txt", "autoencoder/config.json", "autoencoder/metrics.json", "pipeline/a.txt"),
    *("pipeline/unet/config.json", "vae/config.json", "discriminator/config.json", "validation/step-00000003.png"),
    *("checkpoint-00000003/progress.json", "checkpoint-00000099/progress.json", "checkpoint-7"),
    *(".checkpoint-00000002.partial/a", ".checkpoint-00000006.partial/a", "nonfinite-step2-rank0.pt"),
]


def mix(folder: Path, rng: random.Random, names: list[str], victim: Path) -> None:
    """Put files with some of the names into a folder, where nothing is yet; some are links to `victim`."""
    there = {path.name for path in folder.iterdir()} if folder.exists() else set()
    for name in rng.sample(names, rng.randint(1, 6)):
        path = folder / name
        if path.relative_to(folder).parts[0] in there:
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(victim) if rng.random() < 0.2 else path.write_text(f"mine: {rng.random()}")


def snapshot(folder: Path) -> dict:
    """Everything in a folder: links, and files with their content and time."""
    return {
        path: os.readlink(path) if path.is_symlink() else (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def run(output: Path, **options) -> None:
    """All that trainers write into their folders."""
    session = open_session(output, **options)
    model = {key: value for key, value in tiny_autoencoder(linear=True).config.items() if key[0] != "_"}
    autoencoder = initial_autoencoder(session, ModelOptions(model=model), [], SIDE)
    train(session, session.step + 3)
    save_tokenizer(session, autoencoder, PublishOptions(), training="A test.")
    export_for_hub(tiny_base_pipeline(), session.folder.claim("pipeline"), fp16=False)


@pytest.mark.parametrize("seed", range(12))
def test_only_ours_change(tmp_path, seed):
    rng, output, victim = random.Random(seed), tmp_path / "run", tmp_path / "victim"
    victim.write_text("mine")
    torch.manual_seed(seed)
    ours = seed % 2  # a folder of a run to resume, or one that no run has made
    if ours:
        train(open_session(output), 3)
    known = set(snapshot(tmp_path)) - {victim}
    mix(output, rng, HARMLESS if seed % 4 == 1 else NAMES, victim)
    before = snapshot(tmp_path)
    if seed % 4 == 1:
        run(output, resume=True)
        assert (output / "pipeline" / "model_index.json").exists()
    elif ours:
        with contextlib.suppress(ValueError):  # or all goes well
            run(output, resume=True)
    else:
        with pytest.raises(ValueError, match="holds files that are not of a training run"):
            run(output, resume=rng.choice([True, None]))
        known = set()  # refused before anything was touched
        assert snapshot(tmp_path) == before
    after = snapshot(tmp_path)
    assert {path: after.get(path) for path in before if path not in known} == {
        path: state for path, state in before.items() if path not in known
    }
