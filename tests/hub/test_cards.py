"""Cards of tokenizers: what was measured of the latents is shown, of this model only."""

import pytest
import torch

from benchmarks.latent_stats import for_card, measure
from pqdiff.hub.cards import write_card
from pqdiff.models.fingerprint import fingerprint
from tests.tiny import tiny_autoencoder


@pytest.fixture(scope="module")
def model():
    return tiny_autoencoder(linear=True)


@pytest.fixture(scope="module")
def latents(model) -> dict:
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    document = {"num_images": 2, "data": "noise", "resolution": 32, "autoencoders": {"tiny": measure(model, pixels)}}
    return for_card(document, "tiny")


def test_cards_show_what_the_latents_are_like(model, latents, tmp_path):
    write_card(model, tmp_path, "tiny", "By hand.", '"tiny"', latents=latents)
    card = (tmp_path / "README.md").read_text()
    assert "## What the latents are like\n\nStandardized latents of 2 images (noise), 32 px" in card
    noise = latents["psnr_under_noise"]
    expected = " / ".join(f"{noise[std]['snapped']:.1f}" for std in ("0", "0.03", "0.1", "0.3", "0.5", "1"))
    assert f"with noise of 0 / 0.03 / 0.1 / 0.3 / 0.5 / 1 on the latents, snapped to codewords | {expected} |" in card
    assert card.index("## Measured by us") < card.index("## What the latents are like") < card.index("## Limits")


def test_cards_without_them_stay_as_they_were(model, tmp_path):
    write_card(model, tmp_path, "tiny", "By hand.", '"tiny"')
    card = (tmp_path / "README.md").read_text()
    assert "latents are like" not in card
    assert "THIS_FOLDER`.\n\n## Limits" in card


def test_latents_of_another_model_are_refused(model, latents, tmp_path):
    other = {**latents, "fingerprint": "0" * 16}
    with pytest.raises(ValueError, match=f"fingerprint {'0' * 16}, this one has {fingerprint(model)}"):
        write_card(model, tmp_path, "tiny", "By hand.", '"tiny"', latents=other)
