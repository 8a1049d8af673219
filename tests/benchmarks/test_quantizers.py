"""The comparison of all quantizers: its methods exist, its codecs behave, its committed results are whole."""

import json

import pytest

from benchmarks.quantizers import METHODS, codec_curves, summarize
from benchmarks.render_readme import RESULTS
from pqdiff.data.scenes.scenes import SceneDataset
from pqdiff.quantizers import build_quantizer


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
    runs = [
        {"metrics": {"psnr_dataset": value, "ssim": None}, "search_images_per_second": value, "quantizer_numbers": 3}
        for value in (20.0, 22.0)
    ]
    result = summarize(runs)
    assert result["seeds"] == 2
    assert result["metrics"] == {"psnr_dataset": {"mean": 21.0, "std": pytest.approx(2**0.5, abs=1e-5)}}
    assert result["search_images_per_second"] == 22.0


def test_committed_results_have_every_method_and_three_seeds():
    document = json.loads((RESULTS / "quantizers.json").read_text())
    assert set(document["methods"]) == set(METHODS)
    assert {result["seeds"] for result in document["methods"].values()} == {3}
