"""MS-SSIM is that of torchmetrics, whatever the batch."""

import pytest
from torchmetrics.image import MultiScaleStructuralSimilarityIndexMeasure

from pqdiff.metrics.ms_ssim import ms_ssim
from tests.metrics.test_reconstruction import measure, pair


def test_ms_ssim_is_that_of_torchmetrics():
    preds, target = pair((2, 3, 176, 180))
    reference = measure(MultiScaleStructuralSimilarityIndexMeasure(data_range=1.0), (preds / 255, target / 255))
    assert ms_ssim(preds, target).mean().item() == pytest.approx(reference, abs=1e-6)
