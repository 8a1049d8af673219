"""Every mean over images: perfect images, batches, shares, sizes, and what is refused."""

import math

import pytest
import torch

from pqdiff.metrics import MDSI, MSSSIM, SSIMULACRA2, VIF, HaarPSI, ImageSSIM
from tests.metrics.test_reconstruction import measure, pair

SIDES = {HaarPSI: 16, MDSI: 3, MSSSIM: 176, SSIMULACRA2: 8, VIF: 41}
PERFECT = {HaarPSI: 1, MDSI: 0, MSSSIM: 1, SSIMULACRA2: 100, VIF: 1}


@pytest.mark.parametrize(("metric", "least"), SIDES.items())
def test_identical_images_are_perfect(metric, least):
    image = pair((2, 3, least + 1, least + 6))[0]
    for images in (image, torch.zeros_like(image), image[:, :1].expand_as(image)):  # also black, also gray
        assert measure(metric(), (images, images)) == pytest.approx(PERFECT[metric], abs=1e-6)


@pytest.mark.parametrize(("metric", "least"), SIDES.items())
def test_more_noise_is_worse(metric, least):
    target = pair((1, 3, max(least, 48), max(least, 48)))[1].repeat(6, 1, 1, 1)
    noise = torch.randn(target.shape[1:], generator=torch.Generator().manual_seed(0))
    levels = torch.tensor([0, 2, 5, 10, 20, 40]).view(-1, 1, 1, 1)
    values = metric.values((target + levels * noise).round().clamp(0, 255).byte(), target)
    assert ((values.diff() < 0) == metric.higher_is_better).all(), values


@pytest.mark.parametrize(("metric", "least"), SIDES.items())
def test_the_batch_size_changes_no_digit_and_8_bits_count_like_fractions(metric, least):
    preds, target = pair((3, 3, least, least + 5))
    whole = metric.values(preds, target)
    single = torch.cat([metric.values(preds[i : i + 1], target[i : i + 1]) for i in range(3)])
    assert torch.equal(whole, single)
    assert torch.equal(whole, metric.values(preds.float() / 255, target.float() / 255))
    mean = measure(metric(), (preds[:2], target[:2]), (preds[2:], target[2:]))
    assert mean == pytest.approx(float(whole.double().mean()), rel=1e-12)


@pytest.mark.parametrize(("metric", "least"), SIDES.items())
def test_nan_is_no_number(metric, least):
    preds, target = (image / 255 for image in pair((1, 3, least, least)))
    preds[0, 0, 1, 1] = math.nan
    assert math.isnan(measure(metric(), (preds, target)))


@pytest.mark.parametrize(("metric", "least"), [*SIDES.items(), (ImageSSIM, 11)])
def test_images_that_are_too_small_raise_or_make_the_mean_nan(metric, least):
    small, large = pair((1, 3, least, least - 1)), pair((1, 3, least, least))
    with pytest.raises(
        ValueError, match=rf"preds \({least}, {least - 1}\) must have sides of at least {least} pixels"
    ):
        metric().update(*small)
    assert math.isnan(measure(metric(strict=False), large, small))
    assert math.isfinite(measure(metric(strict=False), large))


@pytest.mark.parametrize("metric", [HaarPSI, MDSI, SSIMULACRA2, VIF])
def test_metrics_of_color_need_three_channels(metric):
    with pytest.raises(ValueError, match=r"preds \(1, 1, 48, 48\) must have 3 channels for .*: repeat a gray one"):
        metric().update(*pair((1, 1, 48, 48)))


@pytest.mark.parametrize("metric", SIDES)
def test_states_of_unlike_shares_add_up(metric):
    """What torchmetrics does over processes; `test_protocol.py` has the processes."""
    preds, target = pair((3, 3, SIDES[metric], SIDES[metric] + 2))
    whole, *parts = metric(), metric(), metric()
    whole.update(preds, target)
    for part, share in zip(parts, (slice(2), slice(2, 3)), strict=True):
        part.update(preds[share], target[share])
    assert set(whole._reductions) == {"total", "count"}
    for state, reduction in whole._reductions.items():
        merged = reduction(torch.stack([getattr(part, state) for part in parts]))
        assert float(merged) == pytest.approx(float(getattr(whole, state)), rel=1e-12)
    assert whole.total.dtype == torch.float64
