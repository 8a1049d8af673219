"""Bits as tokens, and entropies of signs against tables of all codes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.quantizers import build_quantizer
from pqdiff.quantizers.binary import entropies


def all_signs(bits: int) -> torch.Tensor:
    """`(2^bits, bits)`, float64."""
    return ((torch.arange(2**bits)[:, None] >> torch.arange(bits)) & 1).double() * 2 - 1


@pytest.mark.parametrize("magnitude", [1.0, 0.5])
def test_entropies_are_those_of_a_softmax_over_all_codes(magnitude):
    z = torch.randn(2, 6, 7, generator=torch.Generator().manual_seed(0))
    each, mean = entropies(z, magnitude, 0.7, 3)
    probabilities = []
    for group in z.double().movedim(1, 2).flatten(0, 1).split(3, dim=1):  # (B N, 3)
        distances = (group[:, None] - magnitude * all_signs(3)).square().sum(dim=2)
        probabilities.append((-distances / 0.7).softmax(dim=1))
    expected = sum(torch.special.entr(p).sum(dim=1).mean() for p in probabilities)
    torch.testing.assert_close(each.double(), expected, rtol=1e-5, atol=1e-6)
    expected = sum(torch.special.entr(p.mean(dim=0)).sum() for p in probabilities)
    torch.testing.assert_close(mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_entropies_and_their_gradients_are_finite_far_from_zero():
    z = torch.tensor([[[1e3], [-1e3], [0.0], [1e-4]]]).requires_grad_()
    each, mean = entropies(z, 1.0, 0.01, 2)
    (each - mean).backward()
    assert each.isfinite()
    assert mean.isfinite()
    assert z.grad.isfinite().all()


@given(
    kind=st.sampled_from(["lookup_free", "binary_spherical"]),
    bits=st.integers(1, 57),
    subspaces=st.integers(1, 3),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_tokens_of_any_number_of_bits_come_back(kind, bits, subspaces, seed):
    quantizer = build_quantizer(kind, bits * subspaces, {"num_subspaces": subspaces})
    z = torch.randn(1, bits * subspaces, 2, 3, generator=torch.Generator().manual_seed(seed))
    indices = quantizer.encode(z)
    assert (indices >= 0).all()
    assert (indices < 2**bits).all()
    codes = quantizer.decode(indices)
    assert torch.equal(codes > 0, z > 0)
    assert torch.equal(quantizer.nearest(codes), indices)


def test_the_first_channel_is_the_least_significant_bit_and_nan_counts_as_negative():
    quantizer = build_quantizer("lookup_free", 3)
    z = torch.tensor([[1.0, -1.0, 1.0], [torch.nan, 0.5, -0.0]])[..., None, None]
    assert quantizer.encode(z).flatten().tolist() == [0b101, 0b010]


def test_soft_snapping_is_the_mean_over_all_codes():
    quantizer = build_quantizer("lookup_free", 3)
    quantizer.set_frequencies([torch.tensor([5, 1, 0, 2, 9, 4, 3, 8])])
    latents = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0)).double()
    noise = torch.tensor([0.3, 1.0, 2.0])
    signs, positive = all_signs(3), quantizer.frequencies.double()
    prior = torch.where(signs > 0, positive, 1 - positive).log().sum(dim=1)  # channels count as independent
    rows = latents.movedim(1, -1).flatten(0, -2)
    logits = prior - ((rows[:, None] - signs) / noise.double()).square().sum(dim=2) / 2
    expected = (logits.softmax(dim=1) @ signs).T.view(1, 3, 4, 4)
    torch.testing.assert_close(quantizer.snap(latents.float(), noise), expected.float(), rtol=1e-4, atol=1e-5)


def test_frequencies_are_those_of_positive_channels():
    quantizer = build_quantizer("lookup_free", 3)
    quantizer.set_frequencies([torch.tensor([5, 1, 0, 2, 9, 4, 3, 8])])
    expected = torch.tensor([(15 + 0.5) / 33, (13 + 0.5) / 33, (24 + 0.5) / 33])
    torch.testing.assert_close(quantizer.frequencies, expected)


@pytest.mark.parametrize(
    ("channels", "config", "message"),
    [
        (6, {"num_subspaces": 4}, r"latent_channels \(6\) must be divisible by num_subspaces \(4\)"),
        (58, {}, r"tokens of 58 bits are too large, at most 57 are possible: raise num_subspaces \(1\)"),
        (6, {"temperature": 0.0}, r"temperature \(0.0\) must be a positive number"),
        (6, {"entropy_bits": 4}, r"entropy_bits \(4\) must be from 1 to 12 and divide the 6 bits of a token"),
        (26, {"entropy_bits": 13}, r"entropy_bits \(13\) must be from 1 to 12"),
        (6, {"entropy_weight": float("nan")}, r"entropy_weight \(nan\)"),
    ],
)
@pytest.mark.parametrize("kind", ["lookup_free", "binary_spherical"])
def test_bad_arguments_are_named_at_construction(kind, channels, config, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer(kind, channels, config)
