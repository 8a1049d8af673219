"""Metrics of reconstructions from noisy latents."""

import pytest
import torch
from torchmetrics import MetricCollection

from pqdiff.data.images.reading import normalize, to_pixels
from pqdiff.metrics.perception import PerceptionMetrics
from pqdiff.metrics.reconstruction import DatasetPSNR
from pqdiff.metrics.robustness import measure_robustness
from tests.metrics.features.test_base import Small
from tests.tiny import tiny_autoencoder


def images(count=4):
    return torch.randint(0, 256, (count, 3, 16, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def measure(batches, levels=(0, 0.3, 3.0), seed=0):
    return measure_robustness(
        tiny_autoencoder(linear=True), batches, levels, lambda: MetricCollection({"psnr": DatasetPSNR()}), seed
    )


def test_noise_changes_tokens_and_images_more_and_more():
    results = measure([images()])
    assert list(results) == [0, 0.3, 3]
    none, some, much = (result["changed_tokens"] for result in results.values())
    assert 0 == none < some < much < 1
    psnr = [float(result["metrics"]["psnr"]) for result in results.values()]
    assert psnr[0] > psnr[1] > psnr[2]


def test_level_0_is_the_plain_reconstruction():
    model, metric = tiny_autoencoder(linear=True), DatasetPSNR()
    with torch.no_grad():
        for image in images().split(1):
            metric.update(
                image, to_pixels(model.decode_from_indices(model.encode_to_indices(normalize(image))).sample)
            )
    assert float(measure([images()], [0])[0]["metrics"]["psnr"]) == pytest.approx(float(metric.compute()), rel=1e-9)


def test_batches_and_order_change_nothing_but_the_seed_does():
    expected = measure([images()], [0.3])[0.3]
    other = measure(images().flip(0).split(3), [0.3])[0.3]
    assert other["changed_tokens"] == expected["changed_tokens"]
    assert float(other["metrics"]["psnr"]) == pytest.approx(float(expected["metrics"]["psnr"]), rel=1e-9)
    assert measure([images()], [0.3], seed=1)[0.3] != expected


def test_any_metrics_will_do():
    results = measure_robustness(
        tiny_autoencoder(linear=True), [images()], [0, 1], lambda: PerceptionMetrics([Small()])
    )
    first, second = (result["metrics"]["feature_distance_small"] for result in results.values())
    assert 0 < first != second > 0


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"noise_levels \(0.0, -1.0\) must be from 0"):
        measure([images()], [0, -1])
    with pytest.raises(ValueError, match="images is empty: give at least one image"):
        measure([])
