"""The comparison of all quantizers: its methods exist, its codecs behave, its committed results are whole."""

import json

import pytest

from benchmarks.quantizers import METHODS, codec_curves, cost, summarize
from benchmarks.render_readme import RESULTS
from pqdiff import AutoencoderPQ
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.quantizers import build_quantizer


def autoencoder(**quantizer) -> AutoencoderPQ:
    return AutoencoderPQ(transform_type="patch", transform_config={"patch_size": 8}, latent_channels=8, **quantizer)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_has_at_most_32_bits_per_position(name):
    kind, channels, config = METHODS[name][:3]
    assert build_quantizer(kind, channels, config).bits_per_position <= 32


def test_codecs_spend_more_bits_for_better_images():
    curves = codec_curves([SceneDataset(1, 64)[0]["image"]])
    assert set(curves) == {"JPEG", "WebP", "AVIF"}
    for curve in curves.values():
        rates, quality = ([point[key] for point in curve] for key in ("bits_per_pixel", "psnr_dataset"))
        assert rates == sorted(rates)
        assert quality[-1] > quality[0]


def test_numbers_of_seeds_are_averaged():
    runs = [{"metrics": {"psnr_dataset": value, "ssim": None}} for value in (20.0, 22.0)]
    result = summarize(runs)
    assert result["seeds"] == 2
    assert result["metrics"] == {"psnr_dataset": {"mean": 21.0, "std": pytest.approx(2**0.5, abs=1e-5)}}


def test_the_cost_of_a_quantizer_is_what_it_stores_and_what_its_search_takes():
    small, large = (
        cost(autoencoder(quantizer_type="vector", quantizer_config={"codebook_size": size})) for size in (16, 4096)
    )
    assert small["stored_megabytes"] == pytest.approx(16 * (8 + 1) * 4 / 1e6, abs=2e-4)  # codewords and frequencies
    assert large["stored_megabytes"] > 200 * small["stored_megabytes"]
    assert small["search_images_per_second"] > 0
    assert small["search_megabytes"] >= 32 * 32 * 8 / 1e6  # the tokens at least


def test_committed_results_have_every_method_and_three_seeds():
    document = json.loads((RESULTS / "quantizers.json").read_text())
    assert set(document["methods"]) == set(METHODS)
    assert {result["seeds"] for result in document["methods"].values()} == {3}
    for result in document["methods"].values():
        assert min(result[key] for key in ("search_images_per_second", "search_megabytes", "stored_megabytes")) > 0
