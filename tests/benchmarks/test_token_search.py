"""Token search on photos: both ways are measured on the same images, and the committed results say what it gives."""

import json

import pytest

from benchmarks import token_search
from benchmarks.render_readme import RESULTS
from pqdiff.fitting.closed_form import fit_closed_form
from tests.benchmarks.support import save_images
from tests.fitting.test_closed_form import smooth_images


def test_a_model_is_measured_both_ways_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(token_search, "RESOLUTION", 64)
    save_images(smooth_images(11, 64), tmp_path / "photos")
    fit_closed_form(smooth_images(8), "f8-d32-s16-k32", 0, sample_size=800).save_pretrained(tmp_path / "model")
    output = tmp_path / "results.json"
    options = {"--photos": tmp_path / "photos", "--model": tmp_path / "model", "--steps": 15, "--output": output}
    command = [str(part) for pair in options.items() for part in pair]
    token_search.main(command)
    document = json.loads(output.read_text())
    assert (document["steps"], document["num_images"]) == (15, 2)
    (result,) = document["models"].values()
    assert result["search"]["ssimulacra2"] > result["encode"]["ssimulacra2"]
    assert result["search"]["bits_per_pixel"] == result["encode"]["bits_per_pixel"]
    assert capsys.readouterr().out.count("SSIMULACRA2") == 2
    token_search.main(command)
    assert not capsys.readouterr().out


LEAST_GAINS = {"pqgan-f8-d32-s16-k128-perceptual": 2.5, "pqgan-f16-d32-s16-k256-perceptual": 6.0}


@pytest.mark.parametrize("name", token_search.MODELS)
def test_committed_results_gain_points_for_a_tenth_of_a_decibel(name):
    ways = json.loads((RESULTS / "token_search.json").read_text())["models"][name]
    assert ways["search"]["ssimulacra2"] > ways["encode"]["ssimulacra2"] + LEAST_GAINS[name]
    assert ways["search"]["psnr_dataset"] > ways["encode"]["psnr_dataset"] - 0.1
