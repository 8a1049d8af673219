"""Autoencoders load by name, folder and pipeline, and whatever is wrong becomes one line that names the source."""

import json
import warnings

import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from safetensors.torch import load_file, save_file

from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import BUNDLED, BUNDLED_PIPELINES
from pqdiff.models.loading import load_autoencoder, load_tokenizer
from tests.tiny import tiny_autoencoder, tiny_kl_autoencoder, tiny_unet

WEIGHTS = "diffusion_pytorch_model.safetensors"
BOTH = pytest.mark.parametrize(("load", "argument"), [(load_autoencoder, "autoencoder"), (load_tokenizer, "model")])


@pytest.fixture
def folder(tmp_path):
    tiny_autoencoder().save_pretrained(tmp_path / "pq")
    return tmp_path / "pq"


def message(load, source) -> str:
    with pytest.raises(ValueError, match=" ") as error:
        load(source)
    assert "\n" not in str(error.value)
    return str(error.value)


@BOTH
def test_a_tokenizer_loads_by_name_by_folder_and_from_a_pipeline(load, argument, folder):
    (folder.parent / "pipeline").mkdir()
    (folder.parent / "pipeline" / "model_index.json").write_text("{}")
    tiny_autoencoder().save_pretrained(folder.parent / "pipeline" / "vae")
    expected = tiny_autoencoder().state_dict()
    for source in (folder, str(folder), folder.parent / "pipeline"):
        loaded = load(source)
        assert type(loaded) is AutoencoderPQ
        assert not loaded.training
        assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    assert load(BUNDLED[0]).config.preset in BUNDLED[0]


def test_other_autoencoders_are_no_tokenizers(tmp_path):
    kl = tiny_kl_autoencoder()
    kl.save_pretrained(tmp_path / "kl")
    loaded = load_autoencoder(tmp_path / "kl")
    assert type(loaded) is AutoencoderKL
    assert not loaded.training
    assert all(map(torch.equal, loaded.state_dict().values(), kl.state_dict().values()))
    assert type(load_autoencoder(BUNDLED_PIPELINES[0])) is AutoencoderKL
    assert "it holds a AutoencoderKL, not an AutoencoderPQ" in message(load_tokenizer, tmp_path / "kl")


@BOTH
def test_arguments_reach_from_pretrained_without_a_warning(load, argument, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in loaded.parameters()} >= {torch.bfloat16}


@BOTH
def test_unknown_names_get_the_nearest(load, argument):
    begin = "is neither a shipped model, nor a folder, nor a Hub id (user/name): "
    assert message(load, "pqgan-f8") == f"{argument} (pqgan-f8) {begin}did you mean 'pqgan-f8-d128-s64-k512'?"
    assert message(load, "zzz").startswith(f"{argument} (zzz) {begin}choose one of {BUNDLED[0]}, ")


@BOTH
@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "holds a list"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "model of unknown class"),
        (lambda folder: tiny_unet(4).save_pretrained(folder), "it holds a UNet2DConditionModel, not an AutoencoderPQ"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no file named"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"cut short"), ""),
        (lambda folder: drop(folder, "quantizer.codebooks"), "its weights have missing keys: quantizer.codebooks"),
        (lambda folder: add(folder, "more"), "its weights have unexpected keys: more"),
        (lambda folder: configure(folder, latent_channels=14), ""),
    ],
)
def test_broken_folders_are_refused_in_one_line(load, argument, damage, expected, folder):
    damage(folder)
    text = message(load, folder)
    assert text.startswith(f"{argument} ({folder}) cannot be loaded: ")
    assert expected in text


def drop(folder, name: str) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors[name]
    save_file(tensors, folder / WEIGHTS)


def add(folder, name: str) -> None:
    save_file({**load_file(folder / WEIGHTS), name: torch.zeros(1)}, folder / WEIGHTS)


def configure(folder, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(folder, value):
    weights = load_file(folder / WEIGHTS)
    for name in ("transform.decoder.conv_out.weight", "quantizer.codebooks"):
        damaged = {**weights, name: weights[name].clone()}
        damaged[name].view(-1)[3] = value
        save_file(damaged, folder / WEIGHTS)
        assert f"not finite: {name}" in message(load_tokenizer, folder)


def test_autoencoders_without_a_distribution_of_latents_are_refused(tmp_path):
    AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).save_pretrained(tmp_path / "tiny")
    (tmp_path / "dc").mkdir()
    (tmp_path / "dc" / "config.json").write_text('{"_class_name": "AutoencoderDC", "latent_channels": 32}')
    for name, kind in (("tiny", "AutoencoderTiny"), ("dc", "AutoencoderDC")):
        with pytest.raises(ValueError, match=f"a {kind} has no distribution of latents to encode to"):
            load_autoencoder(tmp_path / name)
