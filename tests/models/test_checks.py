"""Sizes in a configuration are bounded before memory is taken."""

import json

import pytest

from pqdiff import AutoencoderPQ
from pqdiff.models.loading import load_autoencoder
from tests.tiny import tiny_autoencoder, tiny_kl_autoencoder

CONV = {"block_out_channels": (8, 16), "norm_num_groups": 4, "mid_channels": 8}
HUGE = {
    "layers_per_block": {"transform_config": {**CONV, "layers_per_block": 10**9}},
    "block_out_channels has 3,000 entries": {"transform_config": {**CONV, "block_out_channels": [8] * 3000}},
    "block_out_channels": {"transform_config": {**CONV, "block_out_channels": [400_000, 800_000]}},
    "codebook_size": {"quantizer_config": {"num_subspaces": 4, "codebook_size": 10**10}},
    "times codebook_size": {
        "quantizer_config": {"num_subspaces": 4, "codebook_size": 2**20},
        "latent_channels": 2**12,
    },
    "num_subspaces": {"quantizer_config": {"num_subspaces": 10**9, "codebook_size": 2}},
    "blocks": {"refiner_config": {"channels": 8, "blocks": 10**9}},
    "channels": {"refiner_config": {"channels": 10**6, "blocks": 3}},
    "latent_channels": {"latent_channels": 2**70},
    "in_channels": {"in_channels": 10**9},
}


@pytest.mark.parametrize("named", HUGE)
def test_sizes_that_no_machine_could_hold_are_refused_at_once(tmp_path, named):
    tiny_autoencoder().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **HUGE[named]}))
    with pytest.raises(ValueError, match=named) as error:
        load_autoencoder(tmp_path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=named):
        AutoencoderPQ.from_pretrained(tmp_path)


@pytest.mark.parametrize("change", [{"layers_per_block": 10**9}, {"block_out_channels": [8] * 3000}])
def test_other_autoencoders_are_bounded_too(tmp_path, change):
    tiny_kl_autoencoder().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=next(iter(change))):
        load_autoencoder(tmp_path)
