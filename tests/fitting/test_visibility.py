"""Weights of errors: an exact map and its inverse, and what SSIMULACRA2 itself says of the errors they weigh."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.fft import dct

from benchmarks.render_readme import RESULTS
from pqdiff.fitting.closed_form import fit_closed_form
from pqdiff.fitting.visibility import FREQUENCIES, color_axes, cosines, slopes_at, visible_weights
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from tests.fitting.test_closed_form import smooth_images

PRESET = "f8-d32-s16-k32"


@pytest.mark.parametrize("size", [1, 2, 8, 32])
def test_frequencies_equal_scipy(size):
    np.testing.assert_allclose(cosines(size).numpy(), dct(np.eye(size), norm="ortho", axis=0), atol=1e-13)


@pytest.mark.parametrize(("patch_size", "exponent"), [(4, 1.0), (8, 0.5), (16, 1.0), (8, 0.0)])
def test_the_way_back_is_the_inverse(patch_size, exponent):
    weights, inverse = visible_weights(patch_size, exponent)
    torch.testing.assert_close(weights @ inverse, torch.eye(3 * patch_size**2, dtype=torch.float64))


def test_weighted_squares_are_slopes_times_squares_of_coefficients():
    """Against the sum written out: colors, then frequencies of each."""
    weights, _ = visible_weights(8)
    error = torch.randn(3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("ij,jhw->ihw", color_axes(), error)
    expected = 0.0
    for color in range(3):
        table = dct(dct(mixed[color].numpy(), norm="ortho", axis=0), norm="ortho", axis=1)
        for row in range(8):
            for column in range(8):
                frequency = torch.tensor([math.hypot(row, column) / 16], dtype=torch.float64)
                expected += float(slopes_at(frequency, color)) * table[row, column] ** 2
    assert float((weights @ error.flatten()).square().sum()) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("color", [0, 1, 2])
def test_slopes_fall_with_the_frequency_and_are_constant_beyond_what_was_measured(color):
    slopes = slopes_at(torch.linspace(0.001, 0.7, 400), color)
    assert (slopes.diff() <= 1e-12).all()
    ends = slopes_at(torch.tensor([0.0, FREQUENCIES[0], FREQUENCIES[-1], 0.7], dtype=torch.float64), color)
    assert ends[0] == pytest.approx(float(ends[1]))
    assert ends[2] == pytest.approx(float(ends[3]))


def test_slopes_are_the_means_of_the_committed_measurements():
    document = json.loads((RESULTS / "visibility.json").read_text())
    assert tuple(document["frequencies"]) == FREQUENCIES
    for color, name in enumerate(("Y", "Cb", "Cr")):
        measured = torch.tensor([tokenizer[name] for tokenizer in document["slopes"].values()], dtype=torch.float64)
        known = slopes_at(torch.tensor(FREQUENCIES), color)
        torch.testing.assert_close(known, measured.log().mean(dim=0).exp(), rtol=0.05, atol=0)


def test_ssimulacra2_sees_errors_of_equal_weight_more_alike_than_errors_of_equal_size():
    """Gratings of brightness on a smooth image, from coarse to fine: losses that differ less are seen more alike."""
    image = smooth_images(1, size=128)[0][None] / 127.5 - 1
    places = torch.arange(128) + 0.5
    losses = {"equal size": [], "equal weight": []}
    for frequency in (1 / 32, 1 / 8, 3 / 8):
        grating = (2 * math.pi * frequency * places).cos().expand(1, 3, 128, -1) * 0.02
        size = float(slopes_at(torch.tensor([frequency]), 0)) ** -0.5
        for name, factor in (("equal size", 1.0), ("equal weight", size)):
            losses[name].append(float(SSIMULACRA2Loss()(image, image + factor * grating)))
    spread = {name: max(values) / min(values) for name, values in losses.items()}
    assert spread["equal weight"] < spread["equal size"] / 2


@pytest.mark.parametrize("class_bases", [0, 4])
def test_a_fit_for_visible_errors_has_smaller_ones_and_a_larger_squared_error(class_bases):
    images = smooth_images(12)
    weights = visible_weights(8, 1.0)[0].float()
    errors = []
    for visibility in (0.0, 1.0):
        model = fit_closed_form(
            images, PRESET, 0, sample_size=1500, class_bases=class_bases, grids=2, visibility=visibility
        )
        pixels = torch.stack(images) / 127.5 - 1
        with torch.no_grad():
            error = torch.nn.functional.pixel_unshuffle(model(pixels).sample - pixels, 8).flatten(2)  # (B, 192, n)
        errors.append((float(error.square().mean()), float((weights @ error).square().mean())))
    (plain_squares, plain_visible), (squares, visible) = errors
    assert visible < plain_visible
    assert squares > plain_squares


def test_codes_of_a_weighted_fit_come_back_through_its_own_way_back():
    model = fit_closed_form(smooth_images(8), PRESET, 0, sample_size=1000, visibility=0.75)
    assert not model.transform.tied
    codes = torch.randn(1, model.quantizer.code_channels, 3, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.transform.analysis(model.transform.synthesis(codes)), codes, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("visibility", [-0.1, 1.5, math.nan])
def test_other_powers_are_refused(visibility):
    with pytest.raises(ValueError, match=r"visibility \(.*\) must be from 0, for squared error, to 1"):
        fit_closed_form([], PRESET, visibility=visibility)
