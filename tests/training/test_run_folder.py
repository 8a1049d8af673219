"""One run at a time writes to a folder, and only its own entries change."""

import multiprocessing
import os
import signal

import pytest

from pqdiff.training.run_folder import MARKER, RunFolder
from tests.processes import HANGS


def test_a_run_takes_a_new_folder_an_empty_one_or_its_own(tmp_path):
    for name in ("new/deep", "empty", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        assert RunFolder(tmp_path / name).claim("init") == tmp_path / name / "init"
        (tmp_path / name / "init").mkdir(exist_ok=True)


@pytest.mark.parametrize("name", ["config.yaml", ".hidden", "init/", "photo.png", "broken-link"])
def test_a_folder_with_files_of_others_is_refused_and_stays_as_it_was(tmp_path, name):
    path = tmp_path / name
    if name == "broken-link":
        path.symlink_to(tmp_path / "nowhere")
    else:
        path.mkdir() if name.endswith("/") else path.write_text("mine")
    with pytest.raises(ValueError, match="holds files that are not of a training run"):
        RunFolder(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="is a file: give a folder"):
        RunFolder(tmp_path / "file")


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_marker_that_is_no_file_is_refused_at_once(tmp_path, kind):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    (tmp_path / "run").mkdir()
    marker = tmp_path / "run" / MARKER
    {"link": lambda: marker.symlink_to(victim), "pipe": lambda: os.mkfifo(marker), "folder": marker.mkdir}[kind]()
    with pytest.raises(ValueError, match=r"cannot be opened|is not a file"):
        RunFolder(tmp_path / "run")
    assert victim.read_text() == "mine"


def test_what_the_run_has_not_made_is_not_claimed_nor_removed(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "pipeline").mkdir()
    with pytest.raises(ValueError, match="pipeline is not of this run, which would replace it"):
        folder.claim("pipeline")
    folder.remove(tmp_path / "pipeline")
    assert (tmp_path / "pipeline").is_dir()
    (tmp_path / "pipeline").rmdir()
    folder.claim("pipeline").mkdir()
    again = RunFolder(tmp_path)
    again.remove(again.claim("pipeline"))
    assert [entry.name for entry in tmp_path.iterdir()] == [MARKER]


def _hold(path, ready, end):
    folder = RunFolder(path)
    folder.claim("init")
    ready.set()
    end.wait(HANGS)


def test_a_second_process_is_refused_until_the_first_one_ends_also_if_it_is_killed(tmp_path):
    context = multiprocessing.get_context("forkserver")
    ready, end = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, end), daemon=True)
    process.start()
    assert ready.wait(HANGS)
    with pytest.raises(ValueError, match="another run is working in it"):
        RunFolder(tmp_path)
    os.kill(process.pid, signal.SIGKILL)
    process.join(HANGS)
    assert RunFolder(tmp_path).owns("init")
