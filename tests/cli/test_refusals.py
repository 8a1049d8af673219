"""Images, models and outputs that several commands refuse in one line, before they write anything."""

import shutil

import pytest

from tests.cli.support import (
    BAD_IMAGES,
    BAD_MODELS,
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
    result = run_on_source(pqdiff, command, tmp_path / "images", tmp_path / "out", f8)
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
