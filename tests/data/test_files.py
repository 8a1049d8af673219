"""Files and folders appear complete or not at all, whatever interrupts the writing."""

import os
import stat

import pytest

from pqdiff.data.files import atomic_file, atomic_folder

INTERRUPTIONS = (ValueError, OSError, KeyboardInterrupt, SystemExit)


@pytest.fixture(params=[0o022, 0o077, 0o002])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def permissions(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_file_appears_complete_and_alone(tmp_path):
    target = tmp_path / "a" / "b" / "x.json"
    with atomic_file(target) as temporary:
        temporary.write_text("half")
        assert not target.exists()
        assert temporary.parent == target.parent
        assert temporary.suffix == ".json"  # writers choose the format by it
        temporary.write_text("whole")
    assert target.read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_replaces_an_older_one_only_at_the_end(tmp_path):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with atomic_file(str(target)) as temporary:
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_file_leaves_nothing(tmp_path, interruption):
    with pytest.raises(interruption), atomic_file(tmp_path / "x.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise interruption
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
def test_an_interrupted_file_keeps_the_older_one(tmp_path, interruption):
    target = tmp_path / "x.txt"
    target.write_text("old")
    with pytest.raises(interruption), atomic_file(target) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise interruption
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_file_cannot_take_the_place_of_a_folder(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(OSError, match="x"), atomic_file(tmp_path / "x") as temporary:
        temporary.write_text("whole")
    assert [path.name for path in tmp_path.rglob("*")] == ["x"]


def test_a_writer_may_remove_its_file_before_it_fails(tmp_path):
    with pytest.raises(KeyError), atomic_file(tmp_path / "x.txt") as temporary:  # noqa: PT012
        temporary.unlink()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_permissions_of_a_file_follow_the_umask(tmp_path, umask):
    with atomic_file(tmp_path / "x.txt") as temporary:
        temporary.write_text("whole")
    assert permissions(tmp_path / "x.txt") == 0o666 & ~umask
    assert os.umask(umask) == umask  # asking for the mask did not change it


def test_a_folder_appears_complete_and_alone(tmp_path):
    target = tmp_path / "a" / "model"
    with atomic_folder(target) as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x.txt").write_text("whole")
        assert not target.exists()
    assert (target / "deep" / "x.txt").read_text() == "whole"
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    with atomic_folder(str(target)) as temporary:
        (temporary / "x.txt").write_text("whole")
    assert (target / "x.txt").read_text() == "whole"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("interruption", INTERRUPTIONS)
@pytest.mark.parametrize("exists", [False, True])
def test_an_interrupted_folder_leaves_nothing(tmp_path, interruption, exists):
    target = tmp_path / "model"
    if exists:
        target.mkdir()
    with pytest.raises(interruption), atomic_folder(target) as temporary:  # noqa: PT012
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x.txt").write_text("half")
        raise interruption
    assert list(tmp_path.rglob("*")) == ([target] if exists else [])


@pytest.mark.parametrize("kind", ["full folder", "file"])
def test_what_exists_is_refused_before_the_block_runs(tmp_path, kind):
    target = tmp_path / "model"
    if kind == "file":
        target.write_text("precious")
    else:
        target.mkdir()
        (target / "x.txt").write_text("precious")
    before = sorted(tmp_path.rglob("*"))
    ran = []
    with pytest.raises(ValueError, match=r"model: exists already"), atomic_folder(target):
        ran.append(True)
    assert not ran
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_fills_up_meanwhile_is_not_overwritten(tmp_path):
    target = tmp_path / "model"
    with pytest.raises(OSError, match="model"), atomic_folder(target) as temporary:  # noqa: PT012
        (temporary / "x.txt").write_text("ours")
        target.mkdir()
        (target / "x.txt").write_text("theirs")
    assert (target / "x.txt").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_of_a_folder_follow_the_umask(tmp_path, umask):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "x.txt").write_text("whole")
    assert permissions(tmp_path / "model") == 0o777 & ~umask
