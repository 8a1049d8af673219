"""Committed numbers of the latent cache: what the bits say, and what caching promises."""

import json

import pytest
import torch

from benchmarks.latent_cache import TOKENIZERS, check, write_photos
from benchmarks.render_readme import ROOT
from pqdiff.data.captions.captioned import open_captioned

RESULTS = json.loads((ROOT / "benchmarks" / "results" / "latent_cache.json").read_text())["results"]


@pytest.mark.parametrize(("name", "bits"), zip(TOKENIZERS, (9, 7), strict=True))
def test_committed_sizes_are_the_bits_and_little_more(name, bits):
    positions = (256 // (8 if "f8" in name else 16)) ** 2
    sizes = RESULTS[name]["bytes_per_image"]
    assert positions * 64 * bits / 8 < sizes["indices"] < 1.02 * positions * 64 * bits / 8
    assert positions * 128 * 2 < sizes["latents"] < 1.02 * positions * 128 * 2


@pytest.mark.parametrize("name", TOKENIZERS)
def test_committed_speed_shows_what_caching_saves(name):
    assert RESULTS[name]["images_over_indices_milliseconds"] >= 10
    assert RESULTS[name]["latents_over_indices_bytes"] >= 3.5


def test_latents_that_differ_are_no_result():
    latents = torch.randn(2, 4, 8, 8)
    check({"images": latents, "latents": latents + 1e-4})
    with pytest.raises(ValueError, match=r"latents: .* differ"):
        check({"images": latents, "latents": latents + 0.1})


def test_generated_photos_are_readable_and_varied(tmp_path):
    write_photos(tmp_path, 2)
    images = [open_captioned(tmp_path)[i]["image"] for i in range(2)]
    assert images[0].size == (320, 320)
    assert images[0].tobytes() != images[1].tobytes()
