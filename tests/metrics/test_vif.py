"""VIF against torchmetrics in float64."""

import pytest
import torch
from torchmetrics.functional.image import visual_information_fidelity

from pqdiff.metrics.vif import vif
from tests.metrics.test_reconstruction import pair


@pytest.mark.parametrize("noise", [3, 60])
@pytest.mark.parametrize("shape", [(2, 3, 41, 41), (1, 3, 42, 51)])
def test_vif_agrees_with_torchmetrics(shape, noise):
    preds, target = pair(shape, noise=noise)
    target[..., :30] = 77  # no information there
    expected = visual_information_fidelity(preds.double(), target.double(), reduction="none")
    torch.testing.assert_close(vif(preds, target), expected, rtol=1e-6, atol=1e-9)


def test_a_channel_of_one_color_has_nothing_to_lose():
    preds, target = pair((1, 3, 48, 48))
    target[:, 1:] = 9
    channel = visual_information_fidelity(preds[:, :1].double(), target[:, :1].double())
    assert vif(preds, target).item() == pytest.approx((float(channel) + 2) / 3, rel=1e-6)


def test_more_contrast_is_more_information():
    target = pair((1, 3, 48, 48))[1].float() / 255 * 0.5 + 0.25
    assert vif((target - 0.5) * 1.5 + 0.5, target).item() > 1
