"""PSNR against its formula in float64, SSIM against scikit-image, and both against torchmetrics."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from pqdiff.metrics import DatasetPSNR, ImageDistance, ImagePSNR, ImageSSIM
from pqdiff.metrics.reconstruction import as_number

METRICS = (DatasetPSNR, ImagePSNR, ImageSSIM, partial(ImageDistance, lambda x, y: (x - y).abs().mean((1, 2, 3))))


def pair(shape, seed=0, noise=20):
    """uint8 images with structure, and noisy copies whose noise grows from image to image."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[: shape[2], : shape[3]]
    phases = rng.random((*shape[:2], 1, 1)) * 6
    clean = 127 + 90 * np.sin(rows / 5 + phases) * np.cos(columns / 7 - phases) + rng.normal(0, 5, shape)
    levels = noise * (1 + np.arange(shape[0])).reshape(-1, 1, 1, 1) / shape[0]
    images = [np.rint(np.clip(x, 0, 255)).astype(np.uint8) for x in (clean + rng.normal(0, 1, shape) * levels, clean)]
    return tuple(map(torch.from_numpy, images))


def measure(metric, *batches):
    for preds, target in batches:
        metric.update(preds, target)
    return float(metric.compute())


def float64(images):
    return images.double().numpy() / 255


def skimage_ssim(preds, target):
    """Mean over the images of SSIM at the places where the whole window lies in the image."""
    values = []
    for x, y in zip(float64(preds), float64(target), strict=True):
        _, full = structural_similarity(
            x,
            y,
            data_range=1.0,
            channel_axis=0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
        )
        values.append(full[:, 5:-5, 5:-5].mean())
    return np.mean(values)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (4, 3, 20, 33), (3, 1, 1, 1), (2, 3, 200, 300)])
def test_dataset_psnr_is_the_formula(shape):
    preds, target = pair(shape)
    mse = np.mean((float64(preds) - float64(target)) ** 2)
    assert measure(DatasetPSNR(), (preds, target)) == pytest.approx(10 * np.log10(1 / mse), abs=1e-5)


def test_dataset_psnr_agrees_with_torchmetrics():
    batches = [tuple(x.float() / 255 for x in pair((3, 3, 24, 40), seed)) for seed in range(3)]
    reference = PeakSignalNoiseRatio(data_range=1.0)
    assert measure(DatasetPSNR(), *batches) == pytest.approx(measure(reference, *batches), abs=1e-4)


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (5, 3, 20, 33), (3, 1, 1, 1)])
def test_image_psnr_is_the_mean_of_the_images_values(shape):
    preds, target = pair(shape)
    mse = ((float64(preds) - float64(target)) ** 2).mean(axis=(1, 2, 3))
    assert measure(ImagePSNR(), (preds, target)) == pytest.approx(np.mean(-10 * np.log10(mse)), abs=1e-5)
    single = [measure(DatasetPSNR(), (preds[i : i + 1], target[i : i + 1])) for i in range(len(preds))]
    assert measure(ImagePSNR(), (preds, target)) == pytest.approx(np.mean(single), abs=1e-9)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(1, 8), st.integers(1, 8))
@settings(deadline=None)
def test_image_psnr_is_at_least_the_data_sets(seed, count, height, width):
    rng = np.random.default_rng(seed)
    target = rng.integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    error = rng.integers(1, 1 + 2 ** rng.integers(0, 8, (count, 1, 1, 1)), target.shape)
    preds = np.where(target < 128, target + error, target - error).clip(0, 255).astype(np.uint8)
    batch = torch.from_numpy(preds), torch.from_numpy(target)
    assert measure(ImagePSNR(), batch) >= measure(DatasetPSNR(), batch) - 1e-9


def test_an_error_of_one_tenth_is_twenty_decibels():
    batch = torch.full((2, 3, 8, 8), 0.6), torch.full((2, 3, 8, 8), 0.5)
    assert measure(DatasetPSNR(), batch) == pytest.approx(20, abs=1e-5)
    assert measure(ImagePSNR(), batch) == pytest.approx(20, abs=1e-5)


def test_identical_images_are_perfect():
    image = pair((2, 3, 16, 16))[0]
    assert measure(DatasetPSNR(), (image, image)) == float("inf")
    assert measure(ImagePSNR(), (image, image)) == 100
    assert measure(ImageSSIM(), (image, image)) == pytest.approx(1, abs=1e-6)


def test_one_identical_image_does_not_swallow_the_mean():
    target = torch.full((2, 3, 8, 8), 0.5)
    preds = target.clone()
    preds[1] += 0.1
    assert measure(ImagePSNR(), (preds, target)) == pytest.approx(60, abs=1e-5)


@pytest.mark.parametrize("shape", [(1, 3, 11, 11), (3, 3, 48, 64), (2, 1, 40, 25), (1, 3, 150, 11)])
@pytest.mark.parametrize("noise", [2, 40])
def test_ssim_agrees_with_scikit_image(shape, noise):
    preds, target = pair(shape, noise=noise)
    assert measure(ImageSSIM(), (preds, target)) == pytest.approx(skimage_ssim(preds, target), abs=3e-5)


def test_ssim_agrees_with_torchmetrics_inside_the_border():
    preds, target = (x.float() / 255 for x in pair((3, 3, 48, 64)))
    reference = StructuralSimilarityIndexMeasure(data_range=1.0, return_full_image=True)
    reference.update(preds, target)
    full = reference.compute()[1]  # with reflected borders, which are not in the image
    assert measure(ImageSSIM(), (preds, target)) == pytest.approx(float(full[..., 5:-5, 5:-5].mean()), abs=1e-4)


def test_ssim_of_opposites_is_negative():
    target = pair((1, 3, 32, 32))[1]
    assert measure(ImageSSIM(), (255 - target, target)) < 0
    assert measure(ImageSSIM(), (255 - target, target)) == pytest.approx(skimage_ssim(255 - target, target), abs=3e-5)


@pytest.mark.parametrize("shape", [(1, 1, 1100, 1024), (1, 1, 36, 2**16)])
def test_strips_do_not_change_ssim(shape):
    preds, target = pair(shape)
    preds[:, :, ::3] = 0  # uneven from strip to strip
    preds[:, :, : shape[2] // 2] = target[:, :, : shape[2] // 2]
    assert (shape[2] - 10) * shape[3] > 2**20  # more than one strip
    assert measure(ImageSSIM(), (preds, target)) == pytest.approx(skimage_ssim(preds, target), abs=3e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_8_bit_images_count_like_fractions(metric):
    preds, target = pair((2, 3, 16, 20))
    fractions = preds.float() / 255, target.float() / 255
    assert measure(metric(), (preds, target)) == pytest.approx(measure(metric(), fractions), abs=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_batches_accumulate_to_one_batch(metric):
    preds, target = pair((7, 3, 16, 20), noise=60)
    parts = measure(metric(), *zip(preds.split(3), target.split(3), strict=True))
    assert parts == pytest.approx(measure(metric(), (preds, target)), abs=1e-9)


def test_large_images_weigh_more_in_the_data_sets_psnr_only():
    small, large = pair((1, 3, 16, 16), noise=60), pair((1, 3, 64, 64), noise=5)
    squares = [(float64(p) - float64(t)) ** 2 for p, t in (small, large)]
    mse = sum(s.sum() for s in squares) / sum(s.size for s in squares)
    assert measure(DatasetPSNR(), small, large) == pytest.approx(-10 * np.log10(mse), abs=1e-5)
    mean = np.mean([-10 * np.log10(s.mean()) for s in squares])
    assert measure(ImagePSNR(), small, large) == pytest.approx(mean, abs=1e-5)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("preds", "target"),
    [
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 17)),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)),
        (torch.zeros(2, 3, 16, 16), torch.zeros(1, 3, 16, 16)),
        (torch.zeros(3, 16, 16), torch.zeros(3, 16, 16)),
        (torch.zeros(0, 3, 16, 16), torch.zeros(0, 3, 16, 16)),
        (torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8)),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), torch.zeros(1, 3, 16, 16)),
    ],
    ids=["width", "channels", "count", "three axes", "empty", "uint8 target", "uint8 preds"],
)
def test_images_that_do_not_match_raise(metric, preds, target):
    with pytest.raises(ValueError, match="preds"):
        metric().update(preds, target)


@pytest.mark.parametrize("shape", [(1, 3, 10, 30), (1, 3, 30, 10), (1, 3, 1, 1)])
def test_ssim_needs_room_for_its_window(shape):
    with pytest.raises(ValueError, match="at least 11 pixels"):
        ImageSSIM().update(torch.zeros(shape), torch.zeros(shape))


def test_a_refused_batch_is_not_counted():
    metric, (preds, target) = ImageSSIM(), pair((1, 3, 16, 16))
    metric.update(preds, target)
    before = float(metric.compute())
    with pytest.raises(ValueError, match="preds"):
        metric.update(preds, target[:, :1])
    assert float(metric.compute()) == before


def test_numbers_for_json_are_finite():
    assert as_number(torch.tensor(3.5)) == 3.5
    assert as_number(torch.tensor(float("inf"))) is None
    assert as_number(torch.tensor(float("nan"))) is None


def test_a_perceptual_distance_gets_images_from_minus_one_to_one_and_stays_out_of_the_state():
    network = torch.nn.Conv2d(3, 1, 16)
    metric = ImageDistance(lambda x, y: (network(x) - network(y)).abs().flatten(1).mean(1))
    preds, target = pair((3, 3, 16, 16))
    expected = (network(preds / 127.5 - 1) - network(target / 127.5 - 1)).abs().mean()
    assert measure(metric, (preds, target)) == pytest.approx(float(expected.detach()), rel=1e-4)
    assert not metric.total.requires_grad
    assert not list(ImageDistance(network).parameters())


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.int16, torch.int8, torch.uint16, torch.bool])
def test_integers_other_than_uint8_are_refused(make, dtype):
    preds, target = (image.to(dtype) for image in pair((1, 3, 16, 16)))
    with pytest.raises(ValueError, match=rf"preds \({dtype}\) must be uint8 from 0 to 255, or floating point"):
        make().update(preds, target)


@pytest.mark.parametrize("make", METRICS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(("scale", "shift"), [(255, 0), (2, -1), (math.inf, 0)])
def test_floating_point_out_of_range_is_refused(make, dtype, scale, shift):
    preds, target = (image.to(dtype) / 255 for image in pair((1, 3, 16, 16)))
    with pytest.raises(ValueError, match=r"target with values from .* must be floating point in \[0, 1\]"):
        make().update(preds, target * scale + shift)


@pytest.mark.parametrize("make", METRICS)
def test_nan_is_no_number(make):
    preds, target = (image / 255 for image in pair((1, 3, 16, 16)))
    preds[0, 0, 3, 3] = math.nan
    assert math.isnan(measure(make(), (preds, target)))
