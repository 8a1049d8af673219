"""The evaluation script: what it writes, that it goes on, and what it refuses."""

import json

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pqdiff.data.scenes.scenes import SceneDataset
from tests import autoencoders
from training import evaluate


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    autoencoders.build("networks").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "photos"
    folder.mkdir()
    for number, scene in enumerate(SceneDataset(3, 32)[i]["image"] for i in range(3)):
        scene.save(folder / f"{number}.png")
    return folder


def arguments(photos, model, output, *more):
    options = ["--dataset", photos, "--models", model, "jpeg:75", "--resolution", 32, "--output", output, *more]
    return [str(option) for option in options]


def test_metrics_say_by_which_protocol_of_what_on_what(photos, model, tmp_path):
    output = tmp_path / "metrics.json"
    evaluate.main(arguments(photos, model, output, "--networks"))
    document = json.loads(output.read_text())
    assert list(document) == [model.name, "jpeg:75"]
    for result in document.values():
        assert (result["num_images"], result["broken"], result["data"]) == (3, [], "photos")
        assert result["protocol"]["resize"] == "shorter side, Lanczos, center crop"
        assert result["metrics"]["bits_per_pixel"] > 0
    assert document["jpeg:75"]["data_digest"] == document[model.name]["data_digest"]
    assert "fingerprint" in document[model.name]["protocol"]
    assert not (tmp_path / "metrics.json.work").exists()


def test_a_killed_evaluation_goes_on(photos, model, tmp_path, monkeypatch):
    noisy = ("--networks", "--noise", "0.5")  # the counts of changed tokens go on, too
    evaluate.main(arguments(photos, model, tmp_path / "whole.json", *noisy))
    options = arguments(photos, model, tmp_path / "part.json", *noisy, "--save_every", "1")
    load, loaded = Image.Image.load, []

    def results(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate.EvaluationRun, "results", results)
        with pytest.raises(KeyboardInterrupt):
            evaluate.main(options)
    assert (tmp_path / "part.json.work").is_dir()
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "load", lambda image: loaded.append(image) or load(image))
        evaluate.main(options)
    assert not [image for image in loaded if getattr(image, "filename", "").startswith(str(photos))]  # all were done
    assert (tmp_path / "part.json").read_text() == (tmp_path / "whole.json").read_text()
    document = json.loads((tmp_path / "part.json").read_text())
    assert list(document) == [model.name, f"{model.name} + noise 0.5", "jpeg:75"]
    assert 0 < document[f"{model.name} + noise 0.5"]["metrics"]["changed_tokens"] < 1


def test_a_pipeline_generates_an_image_from_each_caption(tmp_path):
    options = ["--dataset", "scenes", "--num_images", "2", "--resolution", "64", "--pipelines", "tiny-quick"]
    options += ["--steps", "2", "--guidance", "2", "--networks", "--output", str(tmp_path / "metrics.json")]
    result = evaluate.main(options)["tiny-quick"]
    assert result["num_images"] == 2
    assert 0 <= result["metrics"]["right_all"] <= 1
    assert {"steps": 2, "guidance": 2.0, "pipeline": "PQStableDiffusionPipeline"}.items() <= result["protocol"].items()


def test_an_extractor_without_weights_gives_null_and_a_reason(photos, model, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    evaluate.main(arguments(photos, model, tmp_path / "metrics.json", "--networks", "inception"))
    result = json.loads((tmp_path / "metrics.json").read_text())["jpeg:75"]
    assert result["metrics"]["rfid"] is None
    assert "Inception" in result["missing"]["rfid"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--weights", "inception"], "NETWORK=FILE"),
        (["--weights", "inception=nowhere.pth", "--networks", "inception"], "nowhere.pth"),
        (["--resolution", "30"], "divisible by F = 4"),
        (["--models", "jpeg:0"], r"quality \(0\)"),
        (["--models", "no-model"], "neither a shipped model"),
    ],
)
def test_mistakes_are_named_in_one_line(photos, model, tmp_path, more, message):
    with pytest.raises((ValueError, OSError), match=message) as error:
        evaluate.main(arguments(photos, model, tmp_path / "metrics.json", *more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "metrics.json").exists()


def test_a_file_that_is_there_is_not_replaced(photos, model, tmp_path):
    (tmp_path / "metrics.json").write_text("mine")
    with pytest.raises(ValueError, match="--force"):
        evaluate.main(arguments(photos, model, tmp_path / "metrics.json"))
    assert (tmp_path / "metrics.json").read_text() == "mine"


def test_files_of_others_in_the_folder_of_sums_stay(photos, model, tmp_path):
    """Kind of fault B1, losing what is not ours: the folder was removed with all that it held."""
    work = tmp_path / "metrics.json.work"
    work.mkdir()
    (work / "mine.txt").write_text("mine")
    evaluate.main(arguments(photos, model, tmp_path / "metrics.json", "--networks", "--save_every", "1"))
    assert [path.name for path in work.iterdir()] == ["mine.txt"]


def test_two_models_of_one_name_are_refused(photos, model, tmp_path, capsys):
    """Kind of fault A7, silently wrong numbers: the second one took the place of the first one in the file."""
    with pytest.raises(SystemExit):
        evaluate.main(arguments(photos, f"a/{model.name}", tmp_path / "x", "--models", model, f"a/b/{model.name}"))
    assert f"{model.name} comes twice" in capsys.readouterr().err


def test_sums_that_are_damaged_are_named(photos, model, tmp_path, monkeypatch):
    """Kind of fault C8, tracebacks."""
    output = tmp_path / "metrics.json"
    options = arguments(photos, model, output, "--networks", "--save_every", "1")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate.EvaluationRun, "forget", lambda run: None)
        evaluate.main(options)
    output.unlink()
    (sums,) = (tmp_path / "metrics.json.work").glob("*.safetensors")
    save_file({name: torch.zeros(2, 3, 5) for name in load_file(sums)}, sums)
    with pytest.raises(ValueError, match="is damaged, remove it"):
        evaluate.main(options)
