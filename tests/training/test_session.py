"""What surrounds a training loop: log, signals, checkpoints, and the guard against losses that are no numbers."""

import os
import signal

import pytest
import torch
from torch import nn

from pqdiff.training import session as session_module
from pqdiff.training.arguments import TrainerParser
from pqdiff.training.session import Session, TrainingStopped, run
from tests.training.support import SIGNALS, flags, fresh_process, steps_of


def open_session(output_dir, total_steps=6, global_batch_size=None, **options) -> Session:
    options = {"checkpointing_steps": 3, "log_steps": 2, **options}
    parser = TrainerParser("A trainer.")
    if global_batch_size:
        parser.set_defaults(batch_size=None)
    return Session(parser.parse(flags(output_dir=output_dir, **options)), total_steps, global_batch_size)


def train(session, until=6, losses=None):
    """A loop of the smallest kind."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    models = {"model": model}
    session.average(models)
    wrapped, optimizer = session.prepare(models, optimizer)
    if found := session.find():
        session.load(found[0])
    while session.step < until:
        loss = wrapped["model"](torch.ones(1, 2)).square().mean()
        if losses is not None:
            loss = loss * losses[session.step]
        session.check_finite(loss, {"captions": ["a"]})
        session.accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        session.update_averages(models)
        session.end_of_step({"learning_rate": 0.1})
    return model


def test_the_log_has_the_mean_loss_of_its_steps_and_ends_with_the_run(tmp_path):
    session = open_session(tmp_path, 5)
    train(session, 5)
    session.close()
    log = steps_of(tmp_path)
    assert [line["step"] for line in log] == [2, 4, 5]
    assert log[0]["loss"] > log[1]["loss"] > log[2]["loss"] > 0
    assert {line["learning_rate"] for line in log} == {0.1}


def test_lines_of_the_log_after_the_checkpoint_are_replaced(tmp_path):
    train(open_session(tmp_path), 5)
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')  # killed while it wrote
    session = open_session(tmp_path, resume=True)
    train(session)
    session.close()
    assert [line["step"] for line in steps_of(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_after_the_step_and_stops(tmp_path, number):
    session = open_session(tmp_path)
    train(session, 1)
    os.kill(os.getpid(), number)
    with pytest.raises(TrainingStopped, match=r"stopped after step 2 of 6; saved in .*--resume goes on"):
        session.end_of_step({})
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000002"]


def test_copies_of_a_signal_change_nothing(tmp_path):
    session = open_session(tmp_path)
    train(session, 1)
    for number in (*SIGNALS, signal.SIGTERM):  # a launcher hands on what the terminal sent to both
        os.kill(os.getpid(), number)
    with pytest.raises(TrainingStopped):
        session.end_of_step({})


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "_PATIENCE", 0.0)
    open_session(tmp_path)
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_signals_go_back_to_their_owner_at_the_end(tmp_path):
    before = [signal.getsignal(number) for number in SIGNALS]
    session = open_session(tmp_path)
    assert [signal.getsignal(number) for number in SIGNALS] != before
    session.close()
    assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_stops_with_step_and_batch_saved(tmp_path, value):
    with pytest.raises(ValueError, match=r"not finite at step 3; its batch is in .*nonfinite-step3-rank0\.pt"):
        train(open_session(tmp_path), losses=[1.0, 1.0, value])
    saved = torch.load(tmp_path / "nonfinite-step3-rank0.pt", weights_only=True)
    assert saved["step"] == 3
    assert not saved["loss"].isfinite()
    assert saved["batch"] == {"captions": ["a"]}


def test_a_folder_with_checkpoints_needs_resume(tmp_path):
    train(open_session(tmp_path))
    with pytest.raises(ValueError, match=r"holds checkpoints of a run: add --resume to go on with it"):
        open_session(tmp_path)


def test_resume_without_a_checkpoint_starts_from_the_beginning(tmp_path, capsys):
    session = open_session(tmp_path / "new", resume=True)
    assert session.find() is None
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
    session.checkpoint()
    session, optimizer = open_with(0.5, resume=True)
    session.load(session.find()[0])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5]


def test_the_limit_of_checkpoints_is_kept(tmp_path):
    train(open_session(tmp_path, checkpointing_steps=1, checkpoints_total_limit=3))
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        f"checkpoint-{step:08d}" for step in (4, 5, 6)
    ]


def test_averages_are_saved_and_loaded_with_the_rest(tmp_path):
    first = open_session(tmp_path, ema_decay=0.5)
    train(first, 3)
    second = open_session(tmp_path, ema_decay=0.5, resume=True)
    model = train(second, 3)
    averages = [session.averages["model"].average.weight for session in (first, second)]
    assert torch.equal(*averages)
    assert not torch.equal(averages[1], model.weight)


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


def test_trackers_get_loss_and_learning_rate(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session = open_session(tmp_path, report_to="tensorboard")
    session.start_trackers("test")
    train(session)
    session.close()
    events = EventAccumulator(str(tmp_path / "logs" / "test")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert events.Scalars("learning_rate")[0].value == pytest.approx(0.1)


def test_precision_is_what_accelerate_says_unless_the_flag_says_otherwise(tmp_path, monkeypatch):
    def precision_of(folder, **options):
        with fresh_process():
            session = open_session(tmp_path / folder, **options)
            assert session.args.mixed_precision == session.accelerator.mixed_precision
            return session.args.mixed_precision

    assert precision_of("none") == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # of accelerate launch --mixed_precision bf16
    assert precision_of("launch") == "bf16"
    assert precision_of("flag", mixed_precision="no") == "no"


def test_samples_per_step_are_shared_by_processes_and_micro_steps(tmp_path):
    session = open_session(tmp_path, batch_size=None, gradient_accumulation_steps=4, global_batch_size=32)
    assert (session.args.batch_size, session.layout.global_batch_size) == (8, 32)
    with pytest.raises(ValueError, match=r"--batch_size is missing: 32 samples a step cannot be shared by 1 process"):
        open_session(tmp_path / "b", batch_size=None, gradient_accumulation_steps=3, global_batch_size=32)


def test_a_launch_that_made_one_process_of_several_is_told_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as accelerate launch --num_processes 2 sets it without GPUs
    open_session(tmp_path)
    assert "this run has one process: on CPUs, several need" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ValueError("no such thing"), OSError("no such file"), TrainingStopped("stopped")])
def test_mistakes_and_stops_end_a_trainer_with_one_line(error):
    def main():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run(main)
    assert stopped.value.code == str(error)


def test_defects_keep_their_traceback():
    def main():
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        run(main)


def test_an_impatient_ctrl_c_ends_a_trainer_with_one_line():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever had it in this process before
    with pytest.raises(SystemExit, match="stopped at once"):
        run(lambda: signal.raise_signal(signal.SIGINT))


def test_a_trainer_that_fails_gives_signals_back(tmp_path):
    """In a notebook the next Ctrl-C is not its own."""
    before = signal.getsignal(signal.SIGINT)

    def main():
        open_session(tmp_path)
        raise ValueError("no such thing")

    with pytest.raises(SystemExit):
        run(main)
    assert signal.getsignal(signal.SIGINT) is before
