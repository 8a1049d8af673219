"""kill -9 and `--resume` before, at and after the discriminator's start (step 4), and two processes.

The autoencoder, the discriminator, both optimizers and the average end as in one uninterrupted run.
"""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.metrics.evaluation import evaluate_reconstruction
from tests.tiny import SIDE
from tests.training.pqgan import DISC_START, STEPS, part, pqgan_flags, train, train_and_keep_pair, whole_state
from tests.training.support import (
    assert_same_state,
    copy_until,
    free_port,
    join,
    losses,
    start,
    start_ranks,
    steps_of,
    weights_of,
)
from training import train_pqgan

OPTIONS = {
    "validation_dataset": "scenes",
    "validation_images": 3,
    "validation_steps": 3,
    "restart_dead_codewords": 3,
    "min_crop_scale": 0.5,
    "random_flip": True,
}
MOMENTS = {
    "before its start": ("open", "log.jsonl", 3),
    "at its start, before the checkpoint has its name": ("os.rename", f"checkpoint-{DISC_START:08d}"),
    "at its start, before its first step is logged": ("open", "log.jsonl", 5),
    "after its start": ("open", "validation/metrics.jsonl", 5),
    "while the result is written": ("open", "discriminator/config.json"),
}
COMPLETE = [2, 2, 4, 4, 8]  # newest checkpoint at each of these moments


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Folder of an uninterrupted run."""
    return train(tmp_path_factory.mktemp("whole") / "run", **OPTIONS)


def assert_same_run(output, reference):
    assert_same_state(whole_state(output), whole_state(reference))
    assert [{**line, "seconds": 0} for line in steps_of(output)] == [
        {**line, "seconds": 0} for line in steps_of(reference)
    ]
    for name in ("autoencoder", "discriminator"):
        assert_same_state(weights_of(output / name), weights_of(reference / name))
    for name in ("autoencoder/config.json", "autoencoder/metrics.json", "validation/metrics.jsonl"):
        assert (output / name).read_text() == (reference / name).read_text()


def test_a_checkpoint_holds_discriminator_optimizers_average_and_used_codewords(whole):
    names = {name.split(" ")[0] for name in whole_state(whole)}
    files = {"model.safetensors", "model_1.safetensors", "ema_autoencoder.safetensors", "used_codewords.safetensors"}
    assert names == files | {"optimizer", "optimizer_1"}
    assert not list(whole.glob("checkpoint-*/custom_checkpoint_*"))  # accelerate would read them as pickles


@pytest.mark.parametrize("step", [2, DISC_START, 6])
def test_a_resumed_run_ends_in_the_same_state(whole, tmp_path, step):
    output = copy_until(whole, tmp_path / "run", step)
    for name in ("autoencoder", "discriminator"):
        shutil.rmtree(output / name)
    train(output, resume=True, **OPTIONS)
    assert_same_run(output, whole)


@pytest.mark.parametrize(
    ("moment", "complete"),
    [
        pytest.param(*case, marks=[pytest.mark.slow] * (case[0] in ("before its start", "after its start")))
        for case in zip(MOMENTS, COMPLETE, strict=True)
    ],
)
def test_a_run_killed_around_the_start_of_the_discriminator_ends_in_the_same_state(whole, tmp_path, moment, complete):
    output, log = tmp_path / "run", tmp_path / "log"
    process = start("train_pqgan", pqgan_flags(output, **OPTIONS), log, moment=MOMENTS[moment])
    assert join(process, log) == -signal.SIGKILL, log.read_text()
    assert max(int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")) == complete
    train(output, resume=True, **OPTIONS)
    assert_same_run(output, whole)


def test_a_run_killed_while_its_first_model_is_saved_begins_again(tmp_path):
    output, log = tmp_path / "run", tmp_path / "log"
    options = {"model": {}, "preset": "f4-d8-s4-k16", "init": "closed_form", "adversarial_weight": 0, "steps": 2}
    process = start("train_pqgan", pqgan_flags(output, **options), log, moment=("os.rename", f"{output}/init"))
    assert join(process, log) == -signal.SIGKILL, log.read_text()
    assert not (output / "init").exists()
    train(output, resume=True, **options)
    assert_same_state(whole_state(output, 2), whole_state(train(tmp_path / "other", **options), 2))


def test_resume_in_an_empty_folder_starts_from_the_beginning(whole, tmp_path):
    train(tmp_path / "run", resume=True, **OPTIONS)
    assert_same_run(tmp_path / "run", whole)


# Two processes. Batch norm sees the images of its own process only (as in the official code), hence no norm here.

PAIR = {"discriminator": {"base_channels": 8, "num_layers": 1, "norm": "none"}, "batch_size": 2}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Folder of a run of two processes with two images each."""
    return run_pair(tmp_path_factory.mktemp("pair"), **PAIR)


def run_pair(folder, **options):
    log = folder / "log"
    ranks = start_ranks("train_pqgan", pqgan_flags(folder / "run", **options), log)
    codes = [join(process, log.with_suffix(f".{rank}")) for rank, process in enumerate(ranks)]
    assert codes == [0, 0], log.with_suffix(".0").read_text() + log.with_suffix(".1").read_text()
    return folder / "run"


def test_two_processes_train_as_one_with_their_images_together(pair, tmp_path):
    alone = train(tmp_path / "alone", **{**PAIR, "batch_size": 4})
    for step in (DISC_START, STEPS):
        first, second = whole_state(alone, step), whole_state(pair, step)
        for prefix in ("model.safetensors", "model_1.safetensors", "ema_autoencoder"):
            names = part(first, prefix)
            differences = torch.cat([(first[name] - second[name]).abs().flatten() for name in names])
            assert differences.quantile(0.99) < 1e-4, (step, prefix)
    for (step, loss, rate), (other_step, other_loss, other_rate) in zip(losses(alone), losses(pair), strict=True):
        assert (step, rate) == (other_step, other_rate)
        assert loss == pytest.approx(other_loss, rel=1e-2)


def test_two_processes_see_different_images(tmp_path):
    log = tmp_path / "log"
    argv = pqgan_flags(tmp_path / "run", **PAIR, learning_rate=1e30, max_grad_norm=0)
    ranks = start_ranks("train_pqgan", argv, log)
    assert [join(process, log.with_suffix(f".{rank}")) for rank, process in enumerate(ranks)] == [1, 1]
    batches = [torch.load(next((tmp_path / "run").glob(f"nonfinite-*-rank{rank}.pt")))["batch"] for rank in range(2)]
    first, second = ({picture.numpy().tobytes() for picture in batch["pixels"]} for batch in batches)
    assert len(first) == len(second) == 2
    assert not first & second


def test_both_processes_take_part_in_checkpoints(pair):
    folder = pair / f"checkpoint-{STEPS:08d}"
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= {path.name for path in folder.iterdir()}


def test_both_processes_end_with_equal_weights_also_after_restarts_and_share_validation(tmp_path):
    options = {**PAIR, "restart_dead_codewords": 3, "validation_dataset": "scenes", "validation_images": 3}
    texts, (first, second) = train_and_keep_pair(tmp_path, **options)
    assert_same_state(first, second)
    assert "codewords that were not used have a new value" in texts[0]
    shared = [json.loads(line) for line in (tmp_path / "run/validation/metrics.jsonl").read_text().splitlines()][-1]
    scenes = SceneDataset(3, SIDE, seed=1)
    model = AutoencoderPQ.from_pretrained(tmp_path / "run" / "autoencoder")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the ranks have it: the last bits decide how a pixel is rounded
    alone = evaluate_reconstruction(model, [scenes[i]["image"] for i in range(3)], SIDE)["metrics"]
    torch.set_num_threads(threads)
    assert shared["step"] == STEPS
    assert shared["psnr_dataset"] == pytest.approx(alone["psnr_dataset"])
    assert shared["ssim"] == pytest.approx(alone["ssim"])
    assert shared["codebook_utilization"] == pytest.approx(alone["codebook_utilization"])


@pytest.mark.slow
def test_the_launcher_of_accelerate_starts_two_processes(pair, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    command += ["--main_process_port", free_port(), train_pqgan.__file__]
    command += pqgan_flags(tmp_path / "a", **PAIR)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert_same_state(whole_state(tmp_path / "a"), whole_state(pair))
