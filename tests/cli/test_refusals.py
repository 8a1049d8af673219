"""Images, models and outputs that several commands refuse in one line, before they write anything."""

import shutil
import sys

import pytest

from tests.cli.support import (
    BAD_IMAGES,
    BAD_MODELS,
    assert_done,
    assert_refused,
    bad_image,
    bad_model,
    encoded,
    run_on_source,
    save,
)


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_refused(tmp_path, pqdiff, f8, kind):
    bad = bad_model(kind, tmp_path, f8)
    assert_refused(pqdiff("info", bad), bad)


@pytest.mark.parametrize("kind", ["missing", "another class", "cut weights", "a tensor missing"])
@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode", "evaluate"])
def test_a_bad_model_is_refused_before_anything_is_written(tmp_path, pqdiff, f8, command, kind):
    inputs = [save(tmp_path / "images" / "a.png", 1, 16, 16)]
    if command == "decode":
        inputs = encoded(pqdiff, tmp_path / "codes", f8, *inputs)
    bad = bad_model(kind, tmp_path, f8)
    output = tmp_path / "out" / "metrics.json" if command == "evaluate" else tmp_path / "out"
    sources = [tmp_path / "images"] if command == "evaluate" else inputs
    assert_refused(pqdiff(command, *sources, "-o", output, "-m", bad), bad, tmp_path / "out")


@pytest.mark.parametrize("name", ["f8-d128", "some-user/some-model", "no/such/folder"])
def test_an_unknown_model_name_is_refused(pqdiff, name):
    assert_refused(pqdiff("info", name), name)


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("command", ["reconstruct", "encode"])
def test_a_bad_image_is_refused_before_anything_is_written(tmp_path, pqdiff, f8, command, kind):
    good, bad = save(tmp_path / "good.png", 1, 16, 16), bad_image(kind, tmp_path)
    result = pqdiff(command, good, bad, "-o", tmp_path / "out", "-m", f8)
    assert_refused(result, bad, tmp_path / "out")


@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode"])
def test_an_output_that_is_a_file_is_refused(tmp_path, pqdiff, f8, command):
    inputs = [save(tmp_path / "a.png", 1, 16, 16)]
    if command == "decode":
        inputs = encoded(pqdiff, tmp_path / "codes", f8, *inputs)
    (tmp_path / "out").write_text("precious")
    assert_refused(pqdiff(command, *inputs, "-o", tmp_path / "out", "-m", f8), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "precious"


@pytest.mark.parametrize("kind", [kind for kind in BAD_IMAGES if kind not in ("folder", "missing")])
@pytest.mark.parametrize("command", ["evaluate", "fit"])
def test_a_bad_image_in_a_folder_is_refused(tmp_path, pqdiff, f8, command, kind):
    save(tmp_path / "images" / "a.png", 1, 16, 16)
    bad = bad_image(kind, tmp_path / "images")
    shutil.rmtree(tmp_path / "images" / "aside", ignore_errors=True)
    strict = ["--strict"] if command == "evaluate" else []  # which names and counts such images otherwise
    result = run_on_source(pqdiff, command, tmp_path / "images", tmp_path / "out", f8, *strict)
    assert_refused(result, bad, tmp_path / "out")


@pytest.mark.parametrize("command", ["evaluate", "fit"])
@pytest.mark.parametrize("kind", ["missing", "empty", "image", "data set"])
def test_a_source_without_images_is_refused(tmp_path, pqdiff, f8, command, kind):
    source = tmp_path / "source"
    if kind == "empty":
        source.mkdir()
    elif kind == "image":
        source = save(tmp_path / "source.png", 1, 16, 16)
    elif kind == "data set":
        source = "some-user/some-images"
    assert_refused(run_on_source(pqdiff, command, source, tmp_path / "out", f8), source, tmp_path / "out")


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "[bold]x[/y]", "a\nb", "\udcff", "a\u202eb"])
@pytest.mark.parametrize("command", ["info", "evaluate", "encode"])
def test_a_name_cannot_steer_the_terminal(tmp_path, pqdiff, f8, command, name):
    inputs = [] if command == "info" else ["-o", tmp_path / "out", "-m"]
    image = save(tmp_path / "images" / "a.png", 1, 16, 16)
    sources = {"info": [], "evaluate": [image.parent], "encode": [image]}[command]
    result = pqdiff(command, *sources, *inputs, tmp_path / name)
    assert_refused(result, "pqdiff: ", tmp_path / "out")
    assert result.err.strip().isprintable()


def test_a_model_with_markup_in_its_name_is_evaluated_with_progress(tmp_path, pqdiff, f8, monkeypatch):
    save(tmp_path / "images" / "a.png", 1, 16, 16)
    (tmp_path / "[bold]x[").symlink_to(f8)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.chdir(tmp_path)
    result = pqdiff("evaluate", "images", "-o", "m.json", "-m", "./[bold]x[", "--resolution", "16")
    assert result.code == 0
    assert "[bold]x[" in result.out


def test_files_with_names_that_are_not_utf8_are_encoded_and_shown(tmp_path, pqdiff, f8):
    image = save(tmp_path / "a.png", 1, 16, 16).rename(tmp_path / "a\udcff\x1b.png")
    for arguments in (["encode", image], ["reconstruct", image], ["reconstruct", image, "--json", "--force"]):
        result = pqdiff(*arguments, "-m", f8, "-o", tmp_path / "out")
        assert_done(result)
        assert "\x1b" not in result.out


def test_deeply_nested_json_is_one_line(tmp_path, pqdiff, f8):
    bad = shutil.copytree(f8, tmp_path / "bad")
    (bad / "config.json").write_text('{"a":' * 100_000)
    assert_refused(pqdiff("info", bad), bad)
    shutil.copy(f8 / "config.json", bad)
    (bad / "metrics.json").write_text('{"a":' * 100_000)
    assert_refused(pqdiff("info", bad), "nested too deeply")
    (bad / "model_index.json").write_text('{"a":' * 100_000)
    assert_refused(pqdiff("push", bad, "user/name", "--dry-run"), "nested too deeply")
    assert_refused(pqdiff("generate", "a", "-m", bad, "-o", tmp_path / "out.png"), "nested too deeply")
