"""`pqdiff info` and `pqdiff evaluate`, and models that cannot be used."""

import json
import shutil

import pytest

from pqdiff import AutoencoderPQ
from pqdiff.models.fingerprint import fingerprint
from tests.cli.support import (
    BAD_MODELS,
    F8,
    assert_done,
    assert_refused,
    bad_model,
    encoded,
    evaluated,
    files_in,
    save,
)


@pytest.mark.parametrize("kind", BAD_MODELS)
def test_a_bad_model_is_refused(tmp_path, pqdiff, f8, kind):
    bad = bad_model(kind, tmp_path, f8)
    assert_refused(pqdiff("info", bad), bad)


@pytest.mark.parametrize("kind", ["missing", "another class", "cut weights", "a tensor missing"])
@pytest.mark.parametrize("command", ["reconstruct", "encode", "decode", "evaluate"])
def test_a_bad_model_is_refused_before_anything_is_written(tmp_path, pqdiff, f8, command, kind):
    inputs = [save(tmp_path / "photos" / "a.png", 1, 16, 16)]
    if command == "decode":
        inputs = encoded(pqdiff, tmp_path / "codes", f8, *inputs)
    bad = bad_model(kind, tmp_path, f8)
    output = tmp_path / "out" / "metrics.json" if command == "evaluate" else tmp_path / "out"
    sources = [tmp_path / "photos"] if command == "evaluate" else inputs
    assert_refused(pqdiff(command, *sources, "-o", output, "-m", bad), bad, tmp_path / "out")


@pytest.mark.parametrize("name", ["f8-d128", "some-user/some-model", "no/such/folder"])
def test_an_unknown_model_name_is_refused(pqdiff, name):
    assert_refused(pqdiff("info", name), name)


def test_info_as_json_holds_the_configuration_and_rate(pqdiff, f8):
    result = pqdiff("info", f8, "--json")
    assert_done(result)
    facts, model = json.loads(result.out), AutoencoderPQ.from_pretrained(f8)
    assert facts["fingerprint"] == fingerprint(model)
    assert facts["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert (facts["downsample_factor"], facts["tokens_per_position"]) == (8, 64)
    assert (facts["bits_per_position"], facts["bits_per_pixel"]) == (576, 9)
    assert facts["config"]["quantizer_config"] == {"num_subspaces": 64, "codebook_size": 512}
    assert facts["config"]["preset"] == F8
    assert facts["measured"] is None


def test_info_as_a_table(pqdiff, f8):
    result = pqdiff("info", f8)
    assert_done(result)
    for text in ("fingerprint", "bits_per_pixel", "9.0", "config.latent_channels", "128", "pqdiff evaluate"):
        assert text in result.out


def test_info_shows_what_evaluate_measured(tmp_path, pqdiff, f8):
    model = shutil.copytree(f8, tmp_path / "model")
    result = evaluated(pqdiff, tmp_path / "photos", model, tmp_path / "metrics.json")
    assert_done(result)
    (measured,) = json.loads(result.out).values()
    (model / "metrics.json").write_text(json.dumps(measured))
    assert json.loads(pqdiff("info", model, "--json").out)["measured"] == measured
    table = pqdiff("info", model)
    assert_done(table)
    assert f"{measured['metrics']['psnr_dataset']:.4f}" in table.out
    assert "2 images, photos" in table.out


def test_info_follows_its_own_advice_to_evaluate(tmp_path, pqdiff, f8):
    model = shutil.copytree(f8, tmp_path / "model")
    assert_done(evaluated(pqdiff, tmp_path / "photos", model, model / "metrics.json"))
    assert_done(pqdiff("info", model))  # must not stumble over the file that evaluate wrote there


@pytest.mark.parametrize("text", ["", "{", '{"metrics": 3}'])
def test_info_refuses_a_damaged_file_of_metrics(tmp_path, pqdiff, f8, text):
    model = shutil.copytree(f8, tmp_path / "model")
    (model / "metrics.json").write_text(text)
    assert_refused(pqdiff("info", model), "metrics.json")


def test_evaluate_writes_what_it_prints(tmp_path, pqdiff, f8, f16):
    for seed in range(5):
        save(tmp_path / "photos" / f"{seed}.png", seed, 40, 50)
    output = tmp_path / "new" / "metrics.json"
    arguments = ["evaluate", tmp_path / "photos", "-m", f8, "-m", f16, "-o", output, "--resolution", 32]
    result = pqdiff(*arguments, "--every", 2, "--json")
    assert_done(result)
    report = json.loads(result.out)
    assert report == json.loads(output.read_text())
    assert files_in(tmp_path / "new") == ["metrics.json"]
    assert list(report) == [str(f8), str(f16)]
    for model in report.values():
        assert model["num_images"] == 3
        assert model["data"] == "photos, every 2"
        assert model["protocol"]["resolution"] == 32
    metrics = report[str(f8)]["metrics"]
    assert metrics["bits_per_pixel"] == pytest.approx(9)
    assert 0 < metrics["entropy_bits_per_pixel"] < 9
    assert metrics["psnr_image_mean"] >= metrics["psnr_dataset"] > report[str(f16)]["metrics"]["psnr_dataset"]
    table = pqdiff(*arguments)
    assert_done(table)
    assert "5 images at 32 px" in table.out
    assert str(output) in table.out.replace("\n", "")


def test_evaluate_agrees_with_reconstruct(tmp_path, pqdiff, f8):
    original = save(tmp_path / "photos" / "a.png", 3, 64, 64)  # no resizing, no cropping
    evaluation = pqdiff("evaluate", original.parent, "-m", f8, "-o", tmp_path / "m.json", "--resolution", 64, "--json")
    reconstruction = pqdiff("reconstruct", original, "-m", f8, "-o", tmp_path / "out", "--json")
    metrics, row = json.loads(evaluation.out)[str(f8)]["metrics"], json.loads(reconstruction.out)["results"][0]
    assert metrics["psnr_dataset"] == pytest.approx(row["psnr"], abs=1e-6)
    assert metrics["ssim"] == pytest.approx(row["ssim"], abs=1e-6)


@pytest.mark.parametrize("resolution", [100, 8, 0, -32])
def test_evaluate_refuses_a_resolution_that_does_not_fit(tmp_path, pqdiff, f8, resolution):
    save(tmp_path / "photos" / "a.png", 1, 16, 16)
    arguments = ["-m", f8, "-o", tmp_path / "out" / "m.json", "--resolution", resolution]
    assert_refused(pqdiff("evaluate", tmp_path / "photos", *arguments), resolution, tmp_path / "out")
