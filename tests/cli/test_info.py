"""`pqdiff info`: facts about a model, metrics that lie beside it, and the backends of the search."""

import json
import shutil

import pytest

from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import bundled
from pqdiff.models.fingerprint import fingerprint
from pqdiff.quantizers.search.backends import BACKENDS
from tests.cli.support import F8, assert_done, assert_refused, evaluated


def test_info_as_json_holds_the_configuration_and_rate(pqdiff, f8):
    result = pqdiff("info", f8, "--json")
    assert_done(result)
    facts, model = json.loads(result.out), AutoencoderPQ.from_pretrained(f8)
    assert facts["fingerprint"] == fingerprint(model)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (facts["downsample_factor"], facts["tokens_per_position"]) == (8, 64)
    assert (facts["bits_per_position"], facts["bits_per_pixel"]) == (576, 9)
    assert facts["config"]["quantizer_config"] == {"num_subspaces": 64, "codebook_size": 512, "hidden_channels": 0}
    assert facts["config"]["preset"] == F8
    assert facts["measured"] is None


@pytest.mark.parametrize("name", ["tiny-quick", "tiny-precise"])
def test_info_takes_a_shipped_pipeline_for_its_tokenizer(pqdiff, name):
    result = pqdiff("info", name, "--json")
    assert_done(result)
    model = AutoencoderPQ.from_pretrained(bundled(name), subfolder="vae")
    assert json.loads(result.out)["fingerprint"] == fingerprint(model)


def test_info_as_a_table(pqdiff, f8):
    result = pqdiff("info", f8)
    assert_done(result)
    for text in ("fingerprint", "bits_per_pixel", "9.0", "config.latent_channels", "128", "pqdiff evaluate"):
        assert text in result.out


def test_info_shows_what_evaluate_measured(tmp_path, pqdiff, f8):
    model = shutil.copytree(f8, tmp_path / "model")
    result = evaluated(pqdiff, tmp_path / "images", model, tmp_path / "metrics.json")
    assert_done(result)
    (measured,) = json.loads(result.out).values()
    (model / "metrics.json").write_text(json.dumps(measured))
    assert json.loads(pqdiff("info", model, "--json").out)["measured"] == measured
    table = pqdiff("info", model)
    assert_done(table)
    assert f"{measured['metrics']['psnr_dataset']:.4f}" in table.out
    assert "2 images, images" in table.out


def test_info_follows_its_own_advice_to_evaluate(tmp_path, pqdiff, f8):
    model = shutil.copytree(f8, tmp_path / "model")
    assert_done(evaluated(pqdiff, tmp_path / "images", model, model / "metrics.json"))
    assert_done(pqdiff("info", model))  # must not stumble over the file that evaluate wrote there


@pytest.mark.parametrize("text", ["", "{", '{"metrics": 3}'])
def test_info_refuses_a_damaged_file_of_metrics(tmp_path, pqdiff, f8, text):
    model = shutil.copytree(f8, tmp_path / "model")
    (model / "metrics.json").write_text(text)
    assert_refused(pqdiff("info", model), "metrics.json")


def test_backends_as_json_say_what_is_available_and_used(pqdiff, monkeypatch):
    monkeypatch.setenv("PQDIFF_SEARCH", "plain")
    result = pqdiff("info", "--backends", "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert report["forced"] == "plain"
    rows = {row["name"]: row for row in report["backends"]}
    assert tuple(rows) == BACKENDS
    assert rows["plain"]["available"]
    assert "cpu" in rows["plain"]["serves"]
    assert rows["native"]["serves"] == []


def test_backends_as_a_table(pqdiff, monkeypatch):
    monkeypatch.delenv("PQDIFF_SEARCH", raising=False)
    result = pqdiff("info", "--backends")
    assert_done(result)
    for text in ("chosen automatically", "cpu", *BACKENDS):
        assert text in result.out


def test_an_unknown_forced_backend_is_refused(pqdiff, monkeypatch):
    monkeypatch.setenv("PQDIFF_SEARCH", "fastest")
    assert_refused(pqdiff("info", "--backends"), "fastest")


def test_backends_take_no_model(pqdiff):
    assert_refused(pqdiff("info", "some-model", "--backends"), "--backends")
