"""`pqdiff compare`."""

import json
import sys

import pytest
from PIL import Image

from tests.cli.support import assert_done, assert_refused, files_in, save


def test_compare_measures_models_and_codecs_on_the_same_images_and_draws_them(tmp_path, pqdiff, f8, f16):
    pytest.importorskip("matplotlib")
    save(tmp_path / "images" / "a.png", 0, 40, 50)
    arguments = ["compare", tmp_path / "images", "-m", f8, "-m", f16, "-o", tmp_path / "out", "--resolution", 32]
    result = pqdiff(*arguments)
    assert_done(result)
    assert files_in(tmp_path / "out") == ["metrics.json", "rate_quality.png"]
    report = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert {str(f8), str(f16), "jpeg:75", "webp:50", "avif:30"} <= set(report)
    assert len({model["data_digest"] for model in report.values()}) == 1
    assert min(Image.open(tmp_path / "out" / "rate_quality.png").size) > 300
    assert_refused(pqdiff(*arguments), "--force", None)
    assert_done(pqdiff(*arguments, "--force", "--no-codecs"))
    assert set(json.loads((tmp_path / "out" / "metrics.json").read_text())) == {str(f8), str(f16)}


def test_names_with_dollars_are_drawn_as_they_are(tmp_path, pqdiff):
    """Kind of fault B4, failing after the work: the names of models and folders were taken for formulas."""
    pytest.importorskip("matplotlib")
    save(tmp_path / r"$\x{$" / "a.png", 0, 40, 50)
    arguments = ["compare", tmp_path / r"$\x{$", "-m", "jpeg:75", "-o", tmp_path / "out", "--resolution", 32]
    assert_done(pqdiff(*arguments, "--no-codecs"))
    assert files_in(tmp_path / "out") == ["metrics.json", "rate_quality.png"]


def test_a_missing_library_is_named_before_the_work(tmp_path, pqdiff, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert_refused(pqdiff("compare", tmp_path, "-o", tmp_path / "out"), "install pqdiff[eval]", tmp_path / "out")
