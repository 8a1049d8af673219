"""Feature distance and class agreement on pairs, against their definitions."""

import math

import pytest
import torch

from pqdiff.metrics.agreement import ClassAgreement, FeatureDistance

pytestmark = pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")  # of torchmetrics


def pairs(n=9, dim=5):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator)
    return x, x + torch.randn(n, dim, generator=generator)


def test_feature_distance_is_two_less_two_cosines():
    x, y = pairs()
    metric = FeatureDistance()
    for part in zip(x.split(4), y.split(4), strict=True):
        metric.update(*part)
    cosines = [
        float(a.double() @ b.double() / (a.double().norm() * b.double().norm())) for a, b in zip(x, y, strict=True)
    ]
    assert float(metric.compute()) == pytest.approx(2 - 2 * sum(cosines) / len(cosines), rel=1e-9)
    metric.reset()
    metric.update(x, x)
    assert metric.compute() == 0


def test_class_agreement_counts_equal_classes():
    x, y = pairs()
    metric = ClassAgreement()
    for part in zip(x.split(2), y.split(2), strict=True):
        metric.update(*part)
    equal = sum(
        a.tolist().index(max(a.tolist())) == b.tolist().index(max(b.tolist())) for a, b in zip(x, y, strict=True)
    )
    assert 0 < equal < len(x)
    assert float(metric.compute()) == equal / len(x)


@pytest.mark.parametrize("metric", [FeatureDistance, ClassAgreement])
def test_no_images_give_no_number(metric):
    assert math.isnan(metric().compute())
