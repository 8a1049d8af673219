"""Cards of tokenizers that were fitted without gradients."""

import json

import pytest

from pqdiff.hub.closed_form_card import write_closed_form_card
from pqdiff.models.fingerprint import fingerprint
from tests.tiny import tiny_autoencoder


@pytest.fixture(scope="module")
def model():
    return tiny_autoencoder(linear=True)


def test_card_and_metrics_lie_beside_the_weights(model, tmp_path):
    metrics = {
        "num_images": 5,
        "data": "my photos",
        "metrics": {"psnr_dataset": 30.0},
        "protocol": {"resolution": 256, "fingerprint": fingerprint(model)},
    }
    write_closed_form_card(model, tmp_path, "tiny", "Made by hand.", '"tiny"', metrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics
    text = (tmp_path / "README.md").read_text()
    assert "fitted in closed form: a linear transform of patches and a product quantizer. It has no networks" in text
    assert "| 30.00 dB |" in text
    assert "Made by hand." in text
    assert "Reported by the paper" not in text


def test_numbers_of_the_paper_stand_beside_the_same_configuration(tmp_path):
    model = tiny_autoencoder(linear=True, preset="f8-d128-s64-k512")
    write_closed_form_card(model, tmp_path, "tiny", "Made by hand.", '"tiny"')
    assert "PSNR 37.4 dB for the trained PQGAN" in (tmp_path / "README.md").read_text()
    assert not (tmp_path / "metrics.json").exists()


def test_a_card_says_that_codewords_stand_for_more_than_the_latents(tmp_path):
    hidden = {"num_subspaces": 4, "codebook_size": 16, "hidden_channels": 4}
    write_closed_form_card(tiny_autoencoder(linear=True, quantizer_config=hidden), tmp_path, "tiny", "Made.", '"tiny"')
    assert "more coefficients than the latents show" in (tmp_path / "README.md").read_text()


def test_latents_of_another_model_leave_nothing_behind(model, tmp_path):
    with pytest.raises(ValueError, match="fingerprint 0"):
        write_closed_form_card(model, tmp_path, "tiny", "Made.", '"tiny"', {}, {"fingerprint": "0"})
    assert not list(tmp_path.iterdir())
