"""Signals save and stop a run; mistakes end it with one line."""

import logging
import os
import signal

import pytest

from pqdiff.training import stopping
from pqdiff.training.stopping import SIGNALS, TrainingStopped, end_in_one_line, run
from tests.training.loops import open_session, train


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_after_the_step_and_stops(tmp_path, number):
    with pytest.raises(TrainingStopped, match=r"stopped after step 2 of 6; saved in .*--resume goes on"):
        train(open_session(tmp_path), signal_at=(1, lambda: os.kill(os.getpid(), number)))
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-00000002"]


def test_copies_of_a_signal_change_nothing(tmp_path):
    def send() -> None:  # a launcher passes on what the terminal sent to both
        for number in (*SIGNALS, signal.SIGTERM):
            os.kill(os.getpid(), number)

    with pytest.raises(TrainingStopped):
        train(open_session(tmp_path), signal_at=(1, send))


def test_a_second_ctrl_c_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, "_PATIENCE", 0.0)
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


@pytest.mark.parametrize("end", [run, lambda main: _in_one_line(main)], ids=["trainers", "scripts"])
def test_what_ends_a_script_is_cleaned_and_the_hub_shows_no_password(end, capsys):
    """Kinds of faults C8 and C9: control characters and tokens were printed, and the Hub's library logs its address."""

    def main():
        logging.getLogger("huggingface_hub.file_download").warning("HEAD http://user:password@host/config.json")
        raise ValueError("model (\x1b[31mx,\n hf_token) cannot be loaded")

    with pytest.raises(SystemExit) as stopped:
        end(main)
    said = capsys.readouterr().err + str(stopped.value.code)
    assert r"model (\x1b[31mx, ***" in said
    assert "password" not in said
    assert "\x1b" not in said


def _in_one_line(main):
    with end_in_one_line("script"):
        main()


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
    """In a notebook, the next Ctrl-C does not belong to it."""
    before = signal.getsignal(signal.SIGINT)

    def main():
        open_session(tmp_path)
        raise ValueError("no such thing")

    with pytest.raises(SystemExit):
        run(main)
    assert signal.getsignal(signal.SIGINT) is before
