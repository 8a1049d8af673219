"""Files and folders appear complete or not at all, whatever interrupts the writing."""

import os
import stat

import pytest

from pqdiff.data.files import atomic_file, atomic_folder, check_new_file, check_new_folder, updated_folder

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
    with pytest.raises(ValueError, match="x is a folder: give a file"), atomic_file(tmp_path / "x"):
        pytest.fail("the work began")
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
    with pytest.raises(ValueError, match="model"), atomic_folder(target) as temporary:  # noqa: PT012
        (temporary / "x.txt").write_text("ours")
        target.mkdir()
        (target / "x.txt").write_text("theirs")
    assert (target / "x.txt").read_text() == "theirs"
    assert list(tmp_path.iterdir()) == [target]


def test_permissions_of_a_folder_follow_the_umask(tmp_path, umask):
    with atomic_folder(tmp_path / "model") as temporary:
        (temporary / "x.txt").write_text("whole")
    assert permissions(tmp_path / "model") == 0o777 & ~umask


@pytest.mark.parametrize("kind", ["pipe", "device", "under a file", "too long", "zero byte", "circle of links"])
def test_what_cannot_be_written_is_refused_before_the_work(tmp_path, kind):
    (tmp_path / "file").write_text("mine")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    paths = {"device": "/dev/null", "under a file": "file/x", "too long": 256 * "x", "zero byte": "a\0b"}
    path = tmp_path / {**paths, "circle of links": "circle"}.get(kind, kind)
    for check in (check_new_file, check_new_folder, lambda path: check_new_file(path, force=True)):
        with pytest.raises(ValueError, match=r"give a file|cannot be written|exists already|link to nothing"):
            check(path)
    with pytest.raises(ValueError, match=r"give a file|cannot be written"), atomic_file(path):
        pytest.fail("the work began")
    assert not stat.S_ISREG(os.stat("/dev/null").st_mode)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["circle", "file", "pipe"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_before_the_work(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="is not a folder that can be written to"):
        check_new_file(tmp_path / "a" / "x.txt")


def test_a_file_is_replaced_only_with_force(tmp_path):
    (tmp_path / "x").write_text("mine")
    check_new_file(tmp_path / "x", force=True)
    check_new_file(tmp_path / "new" / "x")
    with pytest.raises(ValueError, match="x exists already: add --force to replace it, or choose another name"):
        check_new_file(tmp_path / "x")


@pytest.mark.parametrize("length", [241, 255])
def test_names_may_be_as_long_as_the_file_system_takes(tmp_path, length):
    name = (length - 4) * "x" + ".txt"
    with atomic_file(tmp_path / name) as temporary:
        temporary.write_text("whole")
    with atomic_folder(tmp_path / name[1:]) as temporary:
        (temporary / name).write_text("whole")
    assert (tmp_path / name).read_text() == (tmp_path / name[1:] / name).read_text() == "whole"


def test_a_link_to_a_file_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there" / "x.txt")
    for text in ("first", "second"):
        with atomic_file(tmp_path / "link") as temporary:
            temporary.write_text(text)
        assert (tmp_path / "link").is_symlink()
        assert (tmp_path / "there" / "x.txt").read_text() == text


@pytest.mark.parametrize("kind", ["link", "here"])
def test_a_folder_that_cannot_be_renamed_is_filled(tmp_path, monkeypatch, kind):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    with atomic_folder(tmp_path / "link" if kind == "link" else ".") as temporary:
        (temporary / "deep").mkdir()
        (temporary / "deep" / "x.txt").write_text("whole")
    assert [path.name for path in sorted((tmp_path / "there").rglob("*"))] == ["deep", "x.txt"]
    assert os.listdir() == ["deep"]  # the shell is still in it
    assert (tmp_path / "link").is_symlink()


def test_a_folder_is_updated_without_losing_what_others_put_into_it(tmp_path):
    for text in ("first", "second"):
        with updated_folder(tmp_path / "model") as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep" / "x.txt").write_text(text)
        (tmp_path / "model" / "notes.txt").write_text("mine")
        (tmp_path / "model" / "deep" / "notes.txt").write_text("mine")
    assert (tmp_path / "model" / "deep" / "x.txt").read_text() == "second"
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 3
