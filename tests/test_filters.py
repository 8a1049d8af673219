"""Separable windows against convolutions of scipy."""

import numpy as np
import pytest
import torch
from scipy.signal import convolve2d

from pqdiff import filters


@pytest.mark.parametrize("strip", [1, 100, 2**18])
@pytest.mark.parametrize("size", [3, 11])
def test_blur_is_a_convolution_in_any_strips(size, strip, monkeypatch):
    monkeypatch.setattr(filters, "_STRIP", strip)
    weights = filters.gaussian(size, size / 5)
    assert sum(weights) == pytest.approx(1)
    assert weights[0] / weights[size // 2] == pytest.approx(np.exp(-((size // 2) ** 2) / 2 / (size / 5) ** 2))
    planes = torch.rand(2, 14, 17, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = [convolve2d(plane.numpy(), np.outer(weights, weights), mode="valid") for plane in planes]
    np.testing.assert_allclose(filters.blur(planes, weights).numpy(), expected, rtol=1e-12)
