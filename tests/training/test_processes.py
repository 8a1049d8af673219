"""Two processes that talk over loopback: the same samples, the same weights, and the same answers to signals."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import HANGS
from tests.training.support import (
    SIGNALS,
    STEPS,
    adapt,
    adapt_flags,
    assert_same_state,
    copy_until,
    free_port,
    join,
    losses,
    start_ranks,
    state_of,
    steps_of,
    wait_for,
)
from training import adapt_sd

OPTIONS = {"ema_decay": 0.5, "checkpoints_total_limit": 9, "caption_dropout": 0.3}


def finish(ranks, log):
    return [join(process, log.with_suffix(f".{rank}")) for rank, process in enumerate(ranks)]


def messages(log):
    return "\n".join(log.with_suffix(f".{rank}").read_text() for rank in range(2))


def assert_close_state(alone, shared):
    """The same weights and averages, up to the order in which gradients were added."""
    assert alone.keys() == shared.keys()
    names = [name for name in alone if name.startswith(("model.", "ema_"))]
    differences = torch.cat([(alone[name] - shared[name]).abs().flatten() for name in names])
    assert differences.quantile(0.99) < 2e-5


@pytest.fixture(scope="module")
def together(models, tmp_path_factory):
    """Folder of an uninterrupted run of two processes with two samples each."""
    folder = tmp_path_factory.mktemp("together")
    ranks = start_ranks("adapt_sd", adapt_flags(models, folder / "run", **OPTIONS), folder / "log")
    assert finish(ranks, folder / "log") == [0, 0], messages(folder / "log")
    return folder / "run"


def test_two_processes_train_as_one_with_their_samples_together(models, together, tmp_path):
    adapt(models, tmp_path, **OPTIONS, batch_size=4, checkpointing_steps=4)
    for step in (4, STEPS):  # both sides of the freeze switch
        assert_close_state(state_of(tmp_path, step), state_of(together, step))
    for (step, loss, rate), (other_step, other_loss, other_rate) in zip(
        losses(tmp_path), losses(together), strict=True
    ):
        assert (step, rate) == (other_step, other_rate)
        assert loss == pytest.approx(other_loss, rel=1e-3)


def test_one_process_goes_on_where_two_stopped(models, together, tmp_path):
    copy_until(together, tmp_path / "run", 4)
    adapt(models, tmp_path / "run", **OPTIONS, batch_size=4, resume=True)
    assert_close_state(state_of(tmp_path / "run", STEPS), state_of(together, STEPS))


@pytest.mark.slow
def test_micro_steps_may_change_at_an_odd_step(models, tmp_path):
    together = {**OPTIONS, "batch_size": 2, "gradient_accumulation_steps": 2}
    adapt(models, tmp_path / "a", **OPTIONS, batch_size=4, checkpointing_steps=3)
    copy_until(tmp_path / "a", tmp_path / "b", 3)
    adapt(models, tmp_path / "b", **together, resume=True)
    adapt(models, tmp_path / "c", **together)
    assert_close_state(state_of(tmp_path / "b", STEPS), state_of(tmp_path / "c", STEPS))


def test_all_ranks_have_their_part_in_a_checkpoint(together):
    names = {path.name for path in (together / "checkpoint-00000008").iterdir()}
    assert {"random_states_0.pkl", "random_states_1.pkl"} <= names


def test_stopped_and_killed_pairs_end_in_the_same_state(models, together, tmp_path):
    """SIGTERM to one of them saves both; then kill -9 at the freeze switch; then to the end."""
    output, log = tmp_path / "run", tmp_path / "log"
    options = {**OPTIONS, "checkpointing_steps": 100}
    ranks = start_ranks("adapt_sd", adapt_flags(models, output, **options), log)
    wait_for(lambda: "stage 2" in log.with_suffix(".0").read_text(), ranks[1])  # before the first step
    os.kill(ranks[1].pid, signal.SIGTERM)
    assert finish(ranks, log) == [1, 1], messages(log)
    assert messages(log).count("the same command with --resume goes on") == 2
    assert "Traceback" not in messages(log)
    (saved,) = output.glob("checkpoint-*")
    assert (saved / "random_states_1.pkl").exists()

    argv = adapt_flags(models, output, **OPTIONS, resume=True)
    ranks = start_ranks("adapt_sd", argv, log, moment=("os.rename", "checkpoint-00000004"))
    assert join(ranks[0], log.with_suffix(".0")) == -signal.SIGKILL, messages(log)
    ranks[1].kill()
    finish(ranks, log)
    assert not (output / "checkpoint-00000004").exists()
    shutil.rmtree(output / "pipeline", ignore_errors=True)

    ranks = start_ranks("adapt_sd", argv, log)
    assert finish(ranks, log) == [0, 0], messages(log)
    assert_same_state(state_of(output), state_of(together))
    assert losses(output) == losses(together)


def test_a_pair_with_a_loss_that_is_no_number_stops_together(models, tmp_path):
    log = tmp_path / "log"
    stages = [{"resolution": 32, "steps": 4, "learning_rate": 1e30, "trainable": "all"}]
    ranks = start_ranks("adapt_sd", adapt_flags(models, tmp_path / "run", stages=stages), log)
    assert finish(ranks, log) == [1, 1]
    assert messages(log).count("the loss is not finite at step 2") == 2
    batches = [torch.load(tmp_path / "run" / f"nonfinite-step2-rank{rank}.pt")["batch"] for rank in range(2)]
    assert not torch.equal(batches[0]["pixels"], batches[1]["pixels"])


@pytest.mark.parametrize("number", [SIGNALS[0], *(pytest.param(n, marks=pytest.mark.slow) for n in SIGNALS[1:])])
def test_a_signal_to_the_whole_group_saves_although_it_reaches_the_loaders_workers_too(models, tmp_path, number):
    output = tmp_path / "a"
    stages = [{"resolution": 32, "steps": 3000, "learning_rate": 1e-3, "trainable": "all"}]
    flags = adapt_flags(models, output, stages=stages, checkpointing_steps=10_000, dataloader_workers=2)
    process = subprocess.Popen(
        [sys.executable, adapt_sd.__file__, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        text=True,
        start_new_session=True,
    )
    wait_for(lambda: steps_of(output), _Alive(process))
    os.killpg(process.pid, number)  # as a cluster's scheduler or a terminal does
    text, _ = process.communicate(timeout=HANGS)
    assert process.returncode == 1
    assert "the same command with --resume goes on" in text, text
    assert "Traceback" not in text, text
    assert len(list(output.glob("checkpoint-*"))) == 1


@pytest.mark.slow
def test_the_launcher_of_accelerate_starts_two_processes(models, tmp_path):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    command += ["--main_process_port", free_port(), adapt_sd.__file__, *adapt_flags(models, tmp_path / "a", **OPTIONS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    # By hand, but with as many threads from the first moment on: the last bits may depend on it.
    environment |= {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    argv = [sys.executable, adapt_sd.__file__, *adapt_flags(models, tmp_path / "b", **OPTIONS)]
    ranks = [subprocess.Popen(argv, env={**environment, "RANK": rank, "LOCAL_RANK": rank}) for rank in "01"]
    assert [rank.wait(timeout=HANGS) for rank in ranks] == [0, 0]
    assert_same_state(state_of(tmp_path / "a"), state_of(tmp_path / "b"))


@pytest.mark.slow
@pytest.mark.parametrize("number", SIGNALS)
def test_a_launcher_that_is_stopped_leaves_a_checkpoint(models, tmp_path, number):
    output = tmp_path / "a"
    stages = [{"resolution": 32, "steps": 3000, "learning_rate": 1e-3, "trainable": "all"}]
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", 2]
    command += ["--main_process_port", free_port(), adapt_sd.__file__]
    command += adapt_flags(models, output, stages=stages, checkpointing_steps=10000)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    wait_for(lambda: steps_of(output), _Alive(process))
    os.killpg(process.pid, number)  # as a terminal does: the launcher hands it on, too
    text, _ = process.communicate()
    (saved,) = output.glob("checkpoint-*")
    assert (saved / "random_states_1.pkl").exists(), text.decode()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_smoke_run_of_the_readme_learns(tmp_path, processes):
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", processes]
    command += ["--multi_gpu", "--main_process_port", free_port()] if processes > 1 else []
    config = Path(adapt_sd.__file__).parent / "configs" / "adapt_sd" / "smoke.yaml"
    command += [adapt_sd.__file__, "--config", config, "--output_dir", tmp_path / "run"]
    ended = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    values = [loss for _, loss, _ in losses(tmp_path / "run")]
    assert values[-1] < 0.8 * values[0]


class _Alive:
    def __init__(self, process: subprocess.Popen):
        self.process = process

    def is_alive(self) -> bool:
        return self.process.poll() is None
