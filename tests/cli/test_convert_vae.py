"""`pqdiff convert-vae`, and `pqdiff fit --on-latents`."""

import json

import pytest

from pqdiff import AutoencoderPQ
from tests.cli.support import assert_done, assert_refused, images_for_fit, save


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return images_for_fit(tmp_path_factory.mktemp("data") / "images")


@pytest.mark.parametrize(("method", "bits"), [("gaussian", None), ("token_bridge", 6)])
def test_a_gaussian_autoencoder_becomes_a_tokenizer(images, tmp_path, pqdiff, method, bits):
    output = tmp_path / "tokenizer"
    options = ["-o", output, "--method", method, "--resolution", 64, "--num-images", 2]
    result = pqdiff("convert-vae", "tiny-base", images, *options, "--json")
    assert_done(result)
    report = json.loads(result.out)
    model = AutoencoderPQ.from_pretrained(output)
    assert model.config.quantizer_type == method
    assert report["bits_per_pixel"] == pytest.approx(model.bits_per_pixel)
    assert model.quantizer.bits_per_position / 8 >= (bits or report["bits_per_group"]["most"] - 1)
    assert report["fingerprint"] in (output / "README.md").read_text()
    assert "without training" in (output / "README.md").read_text()


def test_a_codebook_that_is_too_small_is_refused_until_forced(images, tmp_path, pqdiff):
    command = ["convert-vae", "tiny-base", images, "-o", tmp_path / "out" / "a", "--resolution", 64, "--num-images", 2]
    command += ["--codebook-size", 4, "--codebook-dim", 2]
    assert_refused(pqdiff(*command), "What fits: codebook_dim 1 with codebook_size", tmp_path / "out")
    assert_done(pqdiff(*command, "--force"))


def test_what_cannot_be_converted_is_refused(images, tmp_path, pqdiff):
    options = ["-o", tmp_path / "out" / "a", "--resolution", 64, "--num-images", 1]
    source = "pqgan-f8-d128-s64-k512"
    assert_refused(pqdiff("convert-vae", source, images, *options), "no Gaussian posterior", tmp_path / "out")
    command = ["convert-vae", "tiny-base", images, *options, "--codebook-dim", 3]
    assert_refused(pqdiff(*command), "must divide the 8 latent channels", tmp_path / "out")
    command = ["convert-vae", "tiny-base", images, *options, "--resolution", 60]
    assert_refused(pqdiff(*command), "must be divisible by F = 8", tmp_path / "out")


def test_fit_on_latents_takes_images_of_any_shape(tmp_path, pqdiff):
    for number in range(2):
        save(tmp_path / "images" / f"{number}.png", number, 61, 83)
    command = ["fit", tmp_path / "images", "-o", tmp_path / "model", "-p", "f8-d8-s4-k16", "--resolution", 60]
    assert_done(pqdiff(*command, "--on-latents", "tiny-base"))


def test_fit_on_latents_quantizes_the_latents_of_an_autoencoder(images, tmp_path, pqdiff):
    output = tmp_path / "model"
    command = ["fit", images, "-o", output, "-p", "f8-d8-s4-k16", "--resolution", 64, "--on-latents", "tiny-base"]
    assert_done(pqdiff(*command))
    model = AutoencoderPQ.from_pretrained(output)
    assert model.config.transform_type == "gaussian_vae"
    assert model.bits_per_pixel == 0.25
    assert "--on-latents tiny-base" in (output / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-p", "f8-d16-s4-k16"], "must begin with f8-d8"),
        (["-p", "f8-d8-s4-k16", "--class-bases", 4], "--on-latents has neither"),
    ],
)
def test_fit_on_latents_refuses_what_does_not_fit(images, tmp_path, pqdiff, options, message):
    command = ["fit", images, "-o", tmp_path / "out" / "a", "--resolution", 64, "--on-latents", "tiny-base", *options]
    assert_refused(pqdiff(*command), message, tmp_path / "out")
