"""Finite scalar quantization against the formulas of its paper, channel by channel in Python numbers."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ

from pqdiff.quantizers import FiniteScalarQuantizer, build_quantizer


def bounded(x: float, levels: int) -> float:
    """The paper's `bound`: what is rounded, in steps."""
    half = (levels - 1) * (1 + 1e-3) / 2
    offset = 0.5 if levels % 2 == 0 else 0.0
    return math.tanh(x + math.atanh(offset / half)) * half - offset


@pytest.mark.parametrize("levels", [2, 3, 4, 5, 8, 15, 16, 1000])
def test_codes_are_those_of_the_paper(levels):
    quantizer = FiniteScalarQuantizer(1, levels)
    z = torch.linspace(-4, 4, 201).view(1, 1, 1, -1)
    output = quantizer(z)
    for x, code, token in zip(z.flatten().tolist(), output.codes.flatten(), output.indices.flatten(), strict=True):
        exact = bounded(x, levels)
        if abs(exact - math.floor(exact) - 0.5) > 1e-3:  # fp32 and Python may round ties to different sides
            assert code.item() == pytest.approx(round(exact) / (levels // 2))
            assert token.item() == round(exact) + levels // 2


@pytest.mark.parametrize(
    ("levels", "codes"),
    [
        (2, [-1.0, 0.0]),
        (3, [-1.0, 0.0, 1.0]),
        (4, [-1.0, -0.5, 0.0, 0.5]),
        (5, [-1.0, -0.5, 0.0, 0.5, 1.0]),
        (8, [-1.0, -0.75, -0.5, -0.25, 0.0, 0.25, 0.5, 0.75]),
    ],
)
def test_all_levels_are_reached_and_even_numbers_of_levels_lean_to_the_negative(levels, codes):
    quantizer = FiniteScalarQuantizer(1, levels)
    table = quantizer.decode(torch.arange(levels).view(1, 1, 1, -1)).flatten()
    assert table.tolist() == codes
    reached = quantizer(torch.linspace(-20, 20, 20_001).view(1, 1, 1, -1)).codes
    assert reached.unique().tolist() == codes


def test_zero_is_coded_as_zero_whatever_the_levels():
    quantizer = FiniteScalarQuantizer(7, [2, 3, 4, 5, 8, 9, 1000])
    assert (quantizer(torch.zeros(1, 7, 1, 1)).codes == 0).all()


def test_the_gradient_is_that_of_the_bound_as_if_nothing_was_rounded():
    levels = [2, 5, 8, 3]
    quantizer, z = FiniteScalarQuantizer(4, levels), torch.randn(2, 4, 3, 3).requires_grad_()
    upstream = torch.randn_like(z)
    (quantizer(z).codes * upstream).sum().backward()
    step = 1e-6
    for b, c, i, j in itertools.product(range(2), range(4), range(3), range(3)):
        x = z[b, c, i, j].item()
        slope = (bounded(x + step, levels[c]) - bounded(x - step, levels[c])) / (2 * step) / (levels[c] // 2)
        expected = upstream[b, c, i, j].item() * slope
        assert z.grad[b, c, i, j].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_there_is_nothing_to_learn():
    quantizer = FiniteScalarQuantizer(4, 5)
    assert list(quantizer.parameters()) == []
    assert quantizer(torch.randn(1, 4, 2, 2)).loss.item() == 0


def test_the_first_channel_of_a_token_is_its_least_significant_digit():
    quantizer = FiniteScalarQuantizer(4, [3, 5, 2, 4], num_subspaces=2)
    assert quantizer.codebook_sizes == (15, 8)
    for digits in itertools.product(range(3), range(5), range(2), range(4)):
        a, b, c, d = digits
        tokens = torch.tensor([a + 3 * b, c + 2 * d]).view(1, 2, 1, 1)
        codes = torch.tensor([a - 1, (b - 2) / 2, c - 1, (d - 2) / 2]).view(1, 4, 1, 1)
        assert torch.equal(quantizer.decode(tokens), codes)
        assert torch.equal(quantizer.nearest(codes), tokens)


def test_subspaces_change_how_codes_are_numbered_but_not_the_codes():
    z = torch.randn(2, 6, 4, 4)
    one, three = FiniteScalarQuantizer(6, 5), FiniteScalarQuantizer(6, 5, num_subspaces=3)
    assert torch.equal(one(z).codes, three(z).codes)
    assert one.bits_per_position == pytest.approx(three.bits_per_position)
    digits = three.encode(z)
    combined = digits[:, 0] + 25 * digits[:, 1] + 625 * digits[:, 2]
    assert torch.equal(one.encode(z)[:, 0], combined)


def test_the_largest_tokens_are_exact():
    quantizer = FiniteScalarQuantizer(57, 2)
    assert quantizer.codebook_sizes == (2**57,)
    indices = torch.tensor([0, 1, 2**57 - 1, 2**56 + 12345]).view(1, 1, 2, 2)
    assert torch.equal(quantizer.nearest(quantizer.to_latents(indices)), indices)


def test_latents_between_levels_go_to_the_nearest_and_beyond_them_to_the_last():
    quantizer = FiniteScalarQuantizer(1, 4)  # -1, -0.5, 0, 0.5
    latents = torch.tensor([-9.0, -0.76, -0.74, -0.3, -0.2, 0.24, 0.25, 0.26, 0.76, 9.0]).view(1, 1, 1, -1)
    assert quantizer.nearest(latents).flatten().tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]  # ties to the lower


@pytest.mark.parametrize("levels", [1001, 4000, 65536])
def test_tokens_stay_in_range_where_the_bound_reaches_beyond_many_levels(levels):
    quantizer = FiniteScalarQuantizer(1, levels)
    output = quantizer(torch.tensor([-1e4, -20.0, 20.0, 1e4]).view(1, 1, 1, -1))
    assert output.indices.flatten().tolist() == [0, 0, levels - 1, levels - 1]
    indices = torch.arange(levels).view(1, 1, 1, -1)
    assert torch.equal(quantizer.nearest(quantizer.to_latents(indices)), indices)


def test_nan_stays_visible_in_codes_and_is_the_lowest_level_in_tokens():
    quantizer, z = FiniteScalarQuantizer(2, 5), torch.zeros(1, 2, 1, 2)
    z[0, 1, 0, 1] = torch.nan
    output = quantizer(z)
    assert output.codes.isnan().sum() == 1
    assert output.indices.flatten().tolist() == [12, 2]
    assert torch.equal(quantizer.encode(z), output.indices)
    assert quantizer.nearest(torch.full((1, 2, 1, 1), torch.nan)).item() == 0


def test_frequencies_of_tokens_become_frequencies_of_every_channel_s_values():
    quantizer = FiniteScalarQuantizer(3, [3, 4, 2], num_subspaces=1)
    counts = torch.randint(50, (24,))
    quantizer.set_frequencies([counts])
    digits = counts.view(2, 4, 3)  # the first channel is the last axis
    for channel, axes in enumerate([(0, 1), (0, 2), (1, 2)]):
        expected = digits.sum(dim=axes) + 0.5
        found = quantizer.frequencies[channel]
        torch.testing.assert_close(found[: len(expected)], expected / expected.sum())
        assert (found[len(expected) :] == 0).all()


def test_soft_snapping_is_the_mean_of_every_channel_s_posterior():
    """Against sums over the levels in double precision."""
    levels, noise = [3, 8, 2, 5], torch.tensor([0.1, 0.3, 0.5, 1.0])
    quantizer = FiniteScalarQuantizer(4, levels, num_subspaces=2)
    quantizer.set_frequencies([torch.randint(50, (size,)) for size in quantizer.codebook_sizes])
    latents = torch.randn(2, 4, 3, 3)
    found = quantizer.snap(latents, noise)
    for channel, number in enumerate(levels):
        table = (torch.arange(number) - number // 2).double() / (number // 2)
        distance = (latents[:, channel, ..., None].double() - table).square()
        weights = quantizer.frequencies[channel, :number].double() * (-distance / (2 * noise[channel] ** 2)).exp()
        expected = (weights * table).sum(-1) / weights.sum(-1)
        torch.testing.assert_close(found[:, channel], expected.float(), rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data(), subspaces=st.integers(1, 3), width=st.integers(1, 3), seed=st.integers(0, 99))
def test_tokens_come_back_for_any_levels(data, subspaces, width, seed):
    channels = subspaces * width
    levels = data.draw(st.lists(st.integers(2, 40), min_size=channels, max_size=channels))
    quantizer = FiniteScalarQuantizer(channels, levels, subspaces)
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.randint(size, (1, 4, 3), generator=generator) for size in quantizer.codebook_sizes]
    indices = torch.stack(maps, dim=1)
    assert torch.equal(quantizer.nearest(quantizer.to_latents(indices)), indices)
    output = quantizer(3 * torch.randn(1, channels, 4, 3, generator=generator))
    assert torch.equal(output.codes, quantizer.decode(output.indices))


@pytest.mark.parametrize("levels", [[8, 5, 5, 5], [8, 6, 5], [7, 5, 5, 5, 5]])
def test_tokens_and_codes_are_those_of_vector_quantize_pytorch(levels):
    reference = FSQ(levels)
    z = torch.randn(2, len(levels), 5, 4)
    codes, indices = reference(z)
    output = FiniteScalarQuantizer(len(levels), levels)(z)
    torch.testing.assert_close(output.codes, codes)
    assert torch.equal(output.indices[:, 0], indices.long())


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"levels": [5, 5, 5]}, r"levels \(\[5, 5, 5\]\) has 3 entries, but there are 4 latent_channels"),
        ({"levels": 1}, r"levels \(1\) must be integers from 2 to 65536"),
        ({"levels": [5, 5, 5, 2.5]}, r"must be integers from 2"),
        ({"levels": 70_000, "num_subspaces": 4}, r"levels \(70000\) must be integers from 2 to 65536"),
        ({"levels": 5, "num_subspaces": 3}, r"latent_channels \(4\) must be divisible by num_subspaces \(3\)"),
        ({"levels": 5, "num_subspaces": 0}, r"num_subspaces \(0\)"),
        ({"levels": 65536}, r"tokens of 2\^64.0 values.*raise num_subspaces \(1\)"),
    ],
)
def test_bad_arguments_are_named_at_construction(config, message):
    with pytest.raises(ValueError, match=message):
        build_quantizer("finite_scalar", 4, config)
