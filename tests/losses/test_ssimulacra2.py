"""SSIMULACRA2 as a loss: equal to the metric, with gradients that lead to better scores."""

import pytest
import torch

from pqdiff.losses import SSIMULACRA2Loss
from pqdiff.metrics.ssimulacra2 import ssimulacra2


def images(count=2, side=40):
    """Smooth random images (B, 3, H, W) in [-1, 1]."""
    noise = torch.randn(count, 3, side + 8, side, generator=torch.Generator().manual_seed(0))
    return torch.tanh(torch.nn.functional.avg_pool2d(noise, 5, 1, 2) * 3)


def worse(image, amount=0.1):
    return (image + amount * torch.randn(image.shape, generator=torch.Generator().manual_seed(1))).clamp(-1, 1)


@pytest.mark.parametrize("side", [8, 40, 120])
@pytest.mark.parametrize("amount", [0.02, 0.3])
def test_it_is_the_metric(side, amount):
    image = images(2, side)
    other = worse(image, amount)
    expected = (100 - ssimulacra2(other / 2 + 0.5, image / 2 + 0.5)) / 100
    torch.testing.assert_close(SSIMULACRA2Loss()(image, other).double(), expected, atol=2e-4, rtol=2e-4)


def test_equal_images_have_no_loss_and_no_gradient():
    image = images().requires_grad_()
    loss = SSIMULACRA2Loss()(images(), image).sum()
    loss.backward()
    assert loss == 0
    assert (image.grad == 0).all()


def test_the_gradient_is_that_of_finite_differences():
    image, other = images(1, 24), worse(images(1, 24))
    other.requires_grad_()
    SSIMULACRA2Loss()(image, other).sum().backward()
    direction = other.grad / other.grad.norm()
    step = 0.02
    ahead, behind = (SSIMULACRA2Loss()(image, (other + sign * step * direction).detach()) for sign in (1, -1))
    assert float((ahead - behind) / (2 * step)) == pytest.approx(float(other.grad.norm()), rel=0.05)


def test_a_few_steps_along_it_make_a_better_score():
    image = images()
    other = worse(image).requires_grad_()
    before = ssimulacra2(other.detach() / 2 + 0.5, image / 2 + 0.5)
    optimizer = torch.optim.Adam([other], 0.01)
    for _ in range(10):
        optimizer.zero_grad()
        SSIMULACRA2Loss()(image, other).sum().backward()
        optimizer.step()
    after = ssimulacra2(other.detach().clamp(-1, 1) / 2 + 0.5, image / 2 + 0.5)
    assert (after > before + 5).all()


@pytest.mark.parametrize("shape", [(1, 3, 7, 40), (1, 1, 40, 40), (3, 40, 40)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(ValueError, match="sides of at least 8"):
        SSIMULACRA2Loss()(torch.zeros(shape), torch.zeros(shape))
