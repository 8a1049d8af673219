"""kill -9 at any moment and `--resume`: weights, averages and optimizer of the uninterrupted run, bit for bit.

The moments before, at and after the freeze switch (step 4) are named by what the process was about to do to which file.
"""

import os
import random
import signal
import subprocess
import sys
import time

import pytest

from tests.training.support import (
    REFERENCE,
    STEPS,
    adapt,
    adapt_flags,
    assert_same_state,
    join,
    losses,
    start,
    state_of,
    steps_of,
    weights_of,
)
from training import adapt_sd

OPTIONS = {**REFERENCE, "checkpoints_total_limit": 2}
MOMENTS = {
    "while the first checkpoint is written": ("open", ".checkpoint-00000002.partial/progress.json"),
    "before the switch, between checkpoints": ("open", "log.jsonl", 3),
    "at the switch, before the checkpoint has its name": ("os.rename", "checkpoint-00000004"),
    "at the switch, before the first step of the second stage is logged": ("open", "log.jsonl", 5),
    "after the switch, while an old checkpoint is removed": ("shutil.rmtree", ".checkpoint-00000002.partial"),
    "after the switch, while a checkpoint is written": ("open", ".checkpoint-00000008.partial/progress.json"),
    "after the last step, while the result is written": ("open", "pipeline/variant.yaml"),
}
COMPLETE = [None, 2, 2, 4, 6, 6, 8]  # newest checkpoint at each of these moments


def assert_same_run(output, reference):
    assert_same_state(state_of(output), state_of(reference))
    assert losses(output) == losses(reference)
    first, second = (weights_of(folder / "pipeline" / "unet") for folder in (output, reference))
    assert all((first[name] == second[name]).all() for name in second)


def newest(output):
    steps = [int(path.name.split("-")[1]) for path in output.glob("checkpoint-*")]
    return max(steps, default=None)


@pytest.mark.parametrize(("moment", "complete"), zip(MOMENTS, COMPLETE, strict=True))
def test_a_killed_run_ends_in_the_same_state(models, reference, tmp_path, moment, complete):
    output, log = tmp_path / "run", tmp_path / "log"
    process = start("adapt_sd", adapt_flags(models, output, **OPTIONS), log, moment=MOMENTS[moment])
    assert join(process, log) == -signal.SIGKILL, log.read_text()
    assert newest(output) == complete
    adapt(models, output, resume=True, **OPTIONS)
    assert_same_run(output, reference)
    assert sorted(path.name for path in output.glob("*checkpoint-*")) == ["checkpoint-00000006", "checkpoint-00000008"]
    assert not list(output.glob(".checkpoint*"))


def test_a_run_killed_again_and_again_ends_in_the_same_state(models, reference, tmp_path):
    output, log, rng = tmp_path / "run", tmp_path / "log", random.Random(0)
    for _ in range(3):
        done = newest(output) or 0
        process = start("adapt_sd", adapt_flags(models, output, resume=True, **OPTIONS), log)
        goal = min(STEPS, done + rng.randint(1, 4))
        while process.is_alive() and (steps_of(output) or [{"step": 0}])[-1]["step"] < goal:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        assert join(process, log) in (-signal.SIGKILL, 0), log.read_text()
    adapt(models, output, resume=True, **OPTIONS)
    assert_same_run(output, reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_command_itself_may_be_killed(models, reference, tmp_path, seed):
    output = tmp_path / "run"
    command = [sys.executable, adapt_sd.__file__, *adapt_flags(models, output, **OPTIONS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        goal = random.Random(seed).randint(1, STEPS - 1)
        while process.poll() is None and len(steps_of(output)) < goal:
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL, (tmp_path / "log").read_text()
    result = subprocess.run([*command, "--resume"], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert_same_run(output, reference)


@pytest.mark.slow
def test_the_command_stops_on_ctrl_c_with_one_line(models, tmp_path):
    output = tmp_path / "run"
    command = [sys.executable, adapt_sd.__file__, *adapt_flags(models, output, **OPTIONS)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    while process.poll() is None and not steps_of(output):
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, messages = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in messages
    assert "the same command with --resume goes on" in messages.splitlines()[-1]
    assert newest(output)
