"""No command replaces a file without `--force`, and what is in the way is found before the work."""

import os
import stat

import pytest

from tests.cli.support import assert_done, assert_refused, save


@pytest.fixture
def commands(tmp_path, pqdiff, f8, letters):
    """For each command its arguments, and a file that it writes to the folder `out`."""
    image, out = save(tmp_path / "in" / "photo.png", 1, 16, 16), tmp_path / "out"
    assert_done(pqdiff("encode", image, "-m", f8, "-o", tmp_path / "codes"))
    codes = tmp_path / "codes" / "photo.pq.safetensors"
    steps = ["--steps", 1, "-n", 1, "-m", letters]
    return {
        "encode": (["encode", image, "-m", f8, "-o", out], "photo.pq.safetensors"),
        "decode": (["decode", codes, "-m", f8, "-o", out], "photo.png"),
        "reconstruct": (["reconstruct", image, "-m", f8, "-o", out], "photo.panel.png"),
        "reconstruct, images": (
            ["reconstruct", image, "-m", f8, "-o", out, "--save-images"],
            "photo.tiny-f8.png",
        ),
        "evaluate": (["evaluate", image.parent, "-m", f8, "--resolution", 16, "-o", out / "m.json"], "m.json"),
        "generate": (["generate", "a fox", *steps, "-o", out / "fox.png"], "fox.png"),
        "generate, folder": (["generate", "a fox", *steps, "-o", out], "1-a-fox.seed-0.png"),
    }


NAMES = ["encode", "decode", "reconstruct", "reconstruct, images", "evaluate", "generate", "generate, folder"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_replaced_only_with_force(tmp_path, pqdiff, commands, name):
    arguments, file = commands[name]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / file).write_bytes(b"mine")
    result = pqdiff(*arguments)
    assert_refused(result, file)
    assert "exists already: add --force" in result.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == [file]
    assert (tmp_path / "out" / file).read_bytes() == b"mine"
    assert_done(pqdiff(*arguments, "--force"))
    assert (tmp_path / "out" / file).read_bytes() != b"mine"


@pytest.mark.parametrize("name", NAMES)
def test_a_pipe_is_not_replaced_by_a_file_even_with_force(tmp_path, pqdiff, commands, name):
    arguments, file = commands[name]
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / file)
    result = pqdiff(*arguments, "--force")
    assert_refused(result, file)
    assert "a device, a pipe or a socket: give a file" in result.err
    assert stat.S_ISFIFO((tmp_path / "out" / file).stat().st_mode)


def test_decode_does_not_replace_the_photo_beside_its_codes(tmp_path, pqdiff, f8, monkeypatch):
    photo = save(tmp_path / "photo.png", 1, 16, 16)
    before = photo.read_bytes()
    monkeypatch.chdir(tmp_path)
    assert_done(pqdiff("encode", "photo.png", "-m", f8, "-o", "."))
    assert_refused(pqdiff("decode", "photo.pq.safetensors", "-o", "."), "photo.png")
    assert photo.read_bytes() == before
