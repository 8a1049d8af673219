"""MDSI against filters of scipy, and complex numbers."""

import numpy as np
import pytest
import torch
from scipy.ndimage import correlate

from pqdiff.metrics.mdsi import mdsi
from tests.metrics.test_haarpsi import same
from tests.metrics.test_reconstruction import pair


def shrunk(plane):
    """Means of f x f pixels at every f-th pixel; outside of the image are zeros."""
    f = max(1, int(min(plane.shape) / 256 + 0.5))
    return same(plane, np.full((f, f), 1 / f**2))[::f, ::f]


def reference(x, y):
    """Eq. 1 to 10 of the paper for images (3, H, W) from 0 to 255."""
    (r1, g1, b1), (r2, g2, b2) = ([shrunk(plane.astype(float)) for plane in image] for image in (x, y))
    luminance = [0.2989 * r + 0.5870 * g + 0.1140 * b for r, g, b in ((r1, g1, b1), (r2, g2, b2))]
    h1, h2 = (0.30 * r + 0.04 * g - 0.35 * b for r, g, b in ((r1, g1, b1), (r2, g2, b2)))
    m1, m2 = (0.34 * r - 0.60 * g + 0.17 * b for r, g, b in ((r1, g1, b1), (r2, g2, b2)))
    prewitt = np.array([[1, 0, -1]] * 3) / 3

    def gradient(plane):
        return np.sqrt(sum(correlate(plane, k, mode="constant") ** 2 for k in (prewitt, prewitt.T)))

    def likeness(a, b, c):
        return (2 * a * b + c) / (a**2 + b**2 + c)

    d, r = map(gradient, luminance)  # distorted, reference
    f = gradient(sum(luminance) / 2)
    structure = likeness(r, d, 140) + likeness(d, f, 55) - likeness(r, f, 55)
    color = (2 * (h1 * h2 + m1 * m2) + 550) / (h1**2 + h2**2 + m1**2 + m2**2 + 550)
    roots = (0.6 * structure + 0.4 * color).astype(complex) ** 0.25
    assert (roots.imag != 0).any() == (0.6 * structure + 0.4 * color < 0).any()
    return np.mean(abs(roots - roots.mean())) ** 0.25


@pytest.mark.parametrize("shape", [(2, 3, 3, 3), (2, 3, 40, 51), (1, 3, 384, 387), (1, 3, 641, 642)])
def test_mdsi_is_the_papers(shape):
    preds, target = pair(shape, noise=40)
    expected = [reference(x.numpy(), y.numpy()) for x, y in zip(preds, target, strict=True)]
    assert mdsi(preds, target).tolist() == pytest.approx(expected, rel=1e-6)


def test_negative_similarities_have_complex_roots():
    generator = torch.Generator().manual_seed(0)
    target = (torch.rand(1, 3, 32, 32, generator=generator) > 0.5).byte() * 255
    preds = 255 - target
    preds[..., 16:] = target[..., 16:] // 8 + 100
    assert mdsi(preds, target).item() == pytest.approx(reference(preds[0].numpy(), target[0].numpy()), rel=1e-6)
