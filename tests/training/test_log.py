"""The log has a line for every so many steps, also after a run was killed, and trackers get the same numbers."""

from pathlib import Path

import pytest

from pqdiff.training.log import cut_lines
from tests.training.loops import open_session, train
from tests.training.support import steps_of


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
        file.write('{"step": 5, "lo\n{"step}\n[]\n{"loss": 1}\n{"step": 5, "lo')  # killed while it wrote
    session = open_session(tmp_path, resume=True)
    train(session)
    session.close()
    assert [line["step"] for line in steps_of(tmp_path)] == [2, 4, 6]


def _interrupt(*_):
    raise KeyboardInterrupt


def test_a_log_that_cannot_be_cut_stays_whole(tmp_path, monkeypatch):
    session = open_session(tmp_path)
    train(session, 4)
    before = (tmp_path / "log.jsonl").read_text()
    monkeypatch.setattr(Path, "replace", _interrupt)
    with pytest.raises(KeyboardInterrupt):
        session.log.cut(0)
    assert (tmp_path / "log.jsonl").read_text() == before
    monkeypatch.undo()
    session.log.cut(2)
    assert [line["step"] for line in steps_of(tmp_path)] == [2]
    assert not list(tmp_path.glob(".log*"))


def test_damaged_lines_of_any_log_are_left_out(tmp_path):
    """Kind of fault B5: such a line in the log of validation ended the run before its steps were saved."""
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "x": {}\n[1]\n{"x": {}}\n{"step": 3}\n')
    cut_lines(path, 2)
    assert path.read_text() == '{"step": 1}\n'


def test_trackers_get_loss_and_learning_rate(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    session = open_session(tmp_path, report_to="tensorboard")
    train(session)
    session.close()
    events = EventAccumulator(str(tmp_path / "logs" / "test")).Reload()
    assert [event.step for event in events.Scalars("loss")] == [2, 4, 6]
    assert events.Scalars("learning_rate")[0].value == pytest.approx(0.1)
