"""What surrounds every training loop: checkpoints, EMA, arguments, precision, trackers, and the order of things."""

import json

import pytest
import torch
from torch import nn

from pqdiff.training.arguments import TrainerParser
from pqdiff.training.run_folder import RESULTS
from tests.training.loops import Numbers, open_session, train
from tests.training.support import fresh_process


def test_a_folder_with_checkpoints_needs_resume(tmp_path):
    train(open_session(tmp_path))
    with pytest.raises(ValueError, match=r"holds checkpoints of another run: add --resume to continue"):
        open_session(tmp_path)


@pytest.mark.parametrize("result", RESULTS)
def test_a_folder_with_a_result_needs_resume(tmp_path, result):
    session = open_session(tmp_path)
    session.folder.claim(result).mkdir()
    with pytest.raises(ValueError, match=r"holds the result of another run: add --resume to continue"):
        open_session(tmp_path)
    open_session(tmp_path, resume=True)


@pytest.mark.parametrize("name", ["pipeline", "init", "validation"])
def test_files_of_others_in_the_place_of_a_result_are_refused_before_the_first_step(tmp_path, name):
    open_session(tmp_path)
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=f"{name} is not of this run, which would replace it"):
        open_session(tmp_path, resume=True)


def test_a_foreign_folder_is_refused_before_anything_in_it_changes(tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 5  # mine\n")
    with pytest.raises(ValueError, match="holds files that are not of a training run"):
        open_session(tmp_path, config=tmp_path / "config.yaml", resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
    assert (tmp_path / "config.yaml").read_text() == "seed: 5  # mine\n"


def test_the_file_that_is_given_as_config_stays_as_it_is(tmp_path):
    open_session(tmp_path)
    (tmp_path / "config.yaml").write_text("seed: 5  # mine\n")
    assert open_session(tmp_path, config=tmp_path / "config.yaml", resume=True).options.seed == 5
    assert (tmp_path / "config.yaml").read_text() == "seed: 5  # mine\n"


def test_an_incomplete_checkpoint_gives_way_to_the_one_before_and_this_is_said(tmp_path, capsys):
    train(open_session(tmp_path))
    newest = tmp_path / "checkpoint-00000006"
    for path in newest.iterdir():
        path.unlink()
    session = open_session(tmp_path, resume=True)
    assert session.step == 3
    assert f"{newest} is not complete, so the newest complete checkpoint before it" in capsys.readouterr().out
    train(session)
    assert json.loads((newest / "progress.json").read_text())["step"] == 6


class _Counted(Numbers):
    """Data of a known number of samples, with something to say."""

    def __init__(self, count):
        self.count, self.notes = count, ["a bucket is small"]

    def __len__(self):
        return self.count


def test_data_that_changed_before_a_run_is_resumed_are_named_and_notes_on_data_are_said_once(tmp_path, capsys):
    train(open_session(tmp_path), 3, samples=_Counted(40))
    said = capsys.readouterr().out
    assert said.count("a bucket is small") == 1
    train(open_session(tmp_path, resume=True), 4, samples=_Counted(40))
    assert "the data are not those" not in said + capsys.readouterr().out
    train(open_session(tmp_path, resume=True), 6, samples=_Counted(20))
    assert "the data are not those that this run began with (40 samples then, 20 now)" in capsys.readouterr().out


@pytest.mark.parametrize("text", ['{"0": 5}', '{"0": "x"}', '{"0": [1, 2]}', "[" * 100_000, "[]"])
def test_a_damaged_record_of_the_data_does_not_stop_a_run(tmp_path, text):
    """Kind of fault C8, tracebacks."""
    train(open_session(tmp_path), 3, samples=_Counted(40))
    (tmp_path / "data.json").write_text(text)
    train(open_session(tmp_path, resume=True), 4, samples=_Counted(40))
    assert json.loads((tmp_path / "data.json").read_text())["0"][0] == 40


class _Truncated(Numbers):
    """A photo of step 4 (from 0) cannot be read."""

    def batches(self, layout, seed, start, stop, workers=0):
        for batch in super().batches(layout, seed, start, stop, workers):
            if batch[0]["step"] == 4:
                raise ValueError("b.jpg is truncated")
            yield batch


def test_the_steps_before_an_image_that_cannot_be_read_are_saved(tmp_path):
    session = open_session(tmp_path, checkpointing_steps=100)
    with pytest.raises(ValueError, match=r"b.jpg is truncated; the 4 steps before are saved in .*--resume goes on"):
        train(session, samples=_Truncated())
    resumed = open_session(tmp_path, checkpointing_steps=100, resume=True)
    assert resumed.step == 4
    alone = train(open_session(tmp_path / "alone"))
    assert torch.equal(train(resumed).weight, alone.weight)


def test_the_last_step_is_saved_before_the_result(tmp_path):
    train(open_session(tmp_path, checkpointing_steps=100))
    assert (tmp_path / "checkpoint-00000006").is_dir()


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, capsys):
    session = open_session(tmp_path / "new", resume=True)
    assert (session.checkpoint, session.step) == (None, 0)
    assert "no complete checkpoint" in capsys.readouterr().out


def test_resume_with_other_arguments_says_which(tmp_path, capsys):
    train(open_session(tmp_path), 2)
    assert "other arguments" not in capsys.readouterr().out
    open_session(tmp_path, resume=True)
    assert "other arguments" not in capsys.readouterr().out
    open_session(tmp_path, resume=True, batch_size=3)
    assert "batch_size: 4 -> 3" in capsys.readouterr().out


def test_a_resumed_run_obeys_the_flags_of_its_own_optimizer(tmp_path):
    def open_with(weight_decay, **options):
        session = open_session(tmp_path, **options)
        model = nn.Linear(2, 1)
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=weight_decay)
        _, optimizer = session.prepare({"model": model}, optimizer)
        return session, optimizer

    session, _ = open_with(0.1)
    session.save_checkpoint()
    session, optimizer = open_with(0.5, resume=True)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5]


def test_the_limit_of_checkpoints_is_kept(tmp_path):
    train(open_session(tmp_path, checkpointing_steps=1, checkpoints_total_limit=3))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step:08d}" for step in (4, 5, 6)
    ]


def test_the_ema_is_saved_and_loaded_with_the_rest(tmp_path):
    first = open_session(tmp_path, ema_decay=0.5)
    train(first, 3)
    second = open_session(tmp_path, ema_decay=0.5, resume=True)
    model = train(second, 3)
    weights = [session.ema["model"].model.weight for session in (first, second)]
    assert torch.equal(*weights)
    assert not torch.equal(weights[1], model.weight)


def test_the_arguments_are_written_down(tmp_path):
    open_session(tmp_path, seed=3)
    again = TrainerParser("A trainer.").parse(["--config", str(tmp_path / "config.yaml")])
    assert (again.seed, again.checkpointing_steps, again.output_dir) == (3, 3, tmp_path)


def test_a_tracker_that_is_not_installed_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"--report_to \(comet_ml\): that tracker is not installed"):
        open_session(tmp_path, report_to="comet_ml")


def test_an_unknown_tracker_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="abacus"):
        open_session(tmp_path, report_to="abacus")


def test_precision_is_what_accelerate_says_unless_the_flag_says_otherwise(tmp_path, monkeypatch):
    def precision_of(folder, **options):
        with fresh_process():
            session = open_session(tmp_path / folder, **options)
            assert session.options.mixed_precision == session.accelerator.mixed_precision
            return session.options.mixed_precision

    assert precision_of("none") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # of accelerate launch --mixed_precision bf16
    assert precision_of("launch") == "bf16"
    assert precision_of("flag", mixed_precision="no") == "no"


def test_samples_per_step_are_shared_by_processes_and_micro_steps(tmp_path):
    session = open_session(tmp_path, batch_size=None, gradient_accumulation_steps=4, global_batch_size=32)
    assert (session.options.batch_size, session.layout.global_batch_size) == (8, 32)
    with pytest.raises(ValueError, match=r"--batch_size is missing: 32 samples a step cannot be shared by 1 process"):
        open_session(tmp_path / "b", batch_size=None, gradient_accumulation_steps=3, global_batch_size=32)


def test_validation_comes_after_the_ema_and_before_the_checkpoint(tmp_path):
    session = open_session(tmp_path, 3, ema_decay=0.5, checkpointing_steps=1)
    seen = []

    def validate(step):
        weight = session.ema["model"].model.weight.clone()
        seen.append((step, weight, len(list(tmp_path.glob("checkpoint-*")))))

    train(session, validate=validate)
    assert [(step, number) for step, _, number in seen] == [(1, 0), (2, 1), (3, 2)]
    assert torch.equal(seen[-1][1], session.ema["model"].model.weight)
    assert not torch.equal(seen[0][1], seen[1][1])


def test_a_launch_that_made_one_process_of_several_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as accelerate launch --num_processes 2 sets it without GPUs
    open_session(tmp_path)
    assert "this run has one process: on CPUs, several need" in capsys.readouterr().out
