"""Ways to make a Gaussian autoencoder discrete are compared at equal bits."""

import json

import pytest

from benchmarks.render_readme import RESULTS
from benchmarks.vae_tokenizers import TRAINED, WAYS
from pqdiff.quantizers import build_quantizer

KINDS = {
    "Gaussian Quant": "gaussian",
    "TokenBridge": "token_bridge",
    "PQ of latents": "product",
}


@pytest.mark.parametrize("way", WAYS)
def test_settings_have_the_bits_under_which_they_stand(way):
    for bits, config in WAYS[way].items():
        assert build_quantizer(KINDS[way.split(TRAINED)[0]], 8, config).bits_per_position == bits


def test_no_way_is_better_than_the_autoencoder_it_is_made_of():
    document = json.loads((RESULTS / "vae_tokenizers.json").read_text())
    untrained = [row for row in document["rows"] if TRAINED not in row["way"]]
    assert len(untrained) == 12
    assert max(row["psnr_dataset"] for row in untrained) < document["psnr_dataset_of_the_autoencoder"]
