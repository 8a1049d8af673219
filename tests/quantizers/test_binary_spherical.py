"""Binary spherical quantization, by the formulas of the paper."""

import pytest
import torch

from pqdiff.quantizers import BinarySphericalQuantizer

BITS = 6


def any_z() -> torch.Tensor:
    return torch.randn(2, 2 * BITS, 4, 3, generator=torch.Generator().manual_seed(0))


def test_codes_are_the_nearest_corners_and_as_long_as_the_vectors_on_the_sphere():
    output = BinarySphericalQuantizer(2 * BITS, num_subspaces=2)(any_z())
    groups = any_z().unflatten(1, (2, BITS))
    expected = torch.where(groups > 0, 1.0, -1.0) / BITS**0.5
    torch.testing.assert_close(output.codes.unflatten(1, (2, BITS)), expected)
    torch.testing.assert_close(output.codes.unflatten(1, (2, BITS)).norm(dim=2), torch.ones(2, 2, 4, 3))
    errors = (output.codes.unflatten(1, (2, BITS)) - groups / groups.norm(dim=2, keepdim=True)).norm(dim=2)
    assert errors.max() < (2 - 2 / BITS**0.5) ** 0.5


def test_entropies_are_those_of_independent_bits():
    """p(positive) = sigmoid(4 u / (sqrt(b) tau)) for u on the sphere; the mean counts bit by bit."""
    quantizer = BinarySphericalQuantizer(BITS, entropy_weight=0.3, diversity_weight=0.9, temperature=0.4)
    z = any_z()[:, :BITS].contiguous()
    on_sphere = (z / z.norm(dim=1, keepdim=True)).double()
    positive = (4 * on_sphere / (BITS**0.5 * 0.4)).sigmoid()
    each = (torch.special.entr(positive) + torch.special.entr(1 - positive)).sum(dim=1).mean()
    mean = positive.mean(dim=(0, 2, 3))
    whole = (torch.special.entr(mean) + torch.special.entr(1 - mean)).sum()
    output = quantizer(z)
    torch.testing.assert_close(output.loss.double(), 0.3 * (each - 0.9 * whole), rtol=1e-5, atol=1e-7)
    assert output.logs["code_entropy"] == pytest.approx(float(each), rel=1e-5)


def test_the_gradient_is_that_of_the_vector_on_the_sphere():
    z = any_z()[:, :BITS].contiguous().requires_grad_()
    quantizer = BinarySphericalQuantizer(BITS, entropy_weight=0.0)
    upstream = torch.randn(2, BITS, 4, 3)
    (quantizer(z).codes * upstream).sum().backward()
    other = z.detach().clone().requires_grad_()
    (torch.nn.functional.normalize(other, dim=1) * upstream).sum().backward()
    torch.testing.assert_close(z.grad, other.grad)


def test_the_length_of_a_vector_does_not_count():
    quantizer = BinarySphericalQuantizer(BITS)
    z = any_z()[:, :BITS]
    torch.testing.assert_close(quantizer(z).loss, quantizer(7 * z).loss)
