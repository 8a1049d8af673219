"""HaarPSI against convolutions of scipy, filter by filter."""

import numpy as np
import pytest
from scipy.signal import convolve2d

from pqdiff.metrics.haarpsi import haarpsi
from tests.metrics.test_reconstruction import pair


def same(image, kernel):
    """The middle of a full convolution, which for an even kernel starts half of it in, as in MATLAB."""
    full = convolve2d(image, kernel)
    top, left = (side // 2 for side in kernel.shape)
    return full[top : top + image.shape[0], left : left + image.shape[1]]


def reference(x, y):
    """The paper's sections 2 and 3, map by map, for images (H, W, 3) from 0 to 255."""
    maps = []
    for image in (x, y):
        r, g, b = np.moveaxis(image.astype(float), -1, 0)
        planes = (
            0.299 * r + 0.587 * g + 0.114 * b,
            0.596 * r - 0.274 * g - 0.322 * b,
            0.211 * r - 0.523 * g + 0.312 * b,
        )
        maps.append([same(plane, np.full((2, 2), 0.25))[::2, ::2] for plane in planes])

    def likeness(a, b):
        return (2 * abs(a) * abs(b) + 30) / (a**2 + b**2 + 30)

    similarities, weights = [], []
    for turned in (False, True):
        coefficients = []
        for scale in (1, 2, 3):
            kernel = np.full((2**scale, 2**scale), 2.0**-scale)
            kernel[: 2 ** (scale - 1)] *= -1
            coefficients.append([same(image[0], kernel.T if turned else kernel) for image in maps])
        similarities.append(np.mean([likeness(*coefficients[0]), likeness(*coefficients[1])], axis=0))
        weights.append(np.maximum(*map(abs, coefficients[2])))
    chroma = [[same(plane, np.full((2, 2), 0.25)) for plane in image[1:]] for image in maps]
    similarities.append(np.mean([likeness(*pairs) for pairs in zip(*chroma, strict=True)], axis=0))
    weights.append(np.mean(weights, axis=0))
    sigmoid = 1 / (1 + np.exp(-4.2 * np.array(similarities)))
    mean = (sigmoid * weights).sum() / np.sum(weights)
    return (np.log(mean / (1 - mean)) / 4.2) ** 2


@pytest.mark.parametrize("shape", [(2, 3, 16, 16), (2, 3, 40, 64), (1, 3, 33, 51)])
@pytest.mark.parametrize("noise", [3, 60])
def test_haarpsi_is_the_papers(shape, noise):
    preds, target = pair(shape, noise=noise)
    pairs = zip(preds, target, strict=True)
    expected = [reference(x.permute(1, 2, 0).numpy(), y.permute(1, 2, 0).numpy()) for x, y in pairs]
    assert haarpsi(preds, target).tolist() == pytest.approx(expected, abs=1e-7)


def test_haarpsi_sees_a_shift_of_color_that_leaves_luma():
    target = pair((1, 3, 32, 32))[1].clamp(60, 190)
    preds = target.int()
    preds[:, 0] += 38
    preds[:, 1] -= 19  # 0.299 x 38 = 0.587 x 19.4
    assert haarpsi(preds.byte(), target).item() < 0.99
