"""Rates and codebook use against their definitions and the identities between them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.metrics import BitsPerPixel, CodebookUsage, EntropyBitsPerPixel

METRICS = (BitsPerPixel, EntropyBitsPerPixel, CodebookUsage)


@st.composite
def equal_codebooks(draw):
    """Number of subspaces, codebook size, and skewed tokens (B, S, h, w)."""
    subspaces, size = draw(st.integers(1, 6)), draw(st.integers(2, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 3)), subspaces, draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    skew = draw(st.sampled_from([1, 3]))
    return subspaces, size, torch.from_numpy((rng.random(shape) ** skew * size).astype(np.int64))


def measure(metric, *batches):
    for indices, pixels in batches:
        metric.update(indices, pixels)
    return metric.compute()


def entropies(indices, size):
    """Nats of each token's histogram, by numpy."""
    result = []
    for token in indices.transpose(0, 1).flatten(1).numpy():
        p = np.bincount(token, minlength=size) / token.size
        result.append(-sum(q * math.log(q) for q in p if q > 0))
    return np.array(result)


def uniform_tokens(sizes, repeats=1):
    """Tokens (1, G, 1, n) in which every value of every codebook is as frequent as its others."""
    length = math.lcm(*sizes) * repeats
    return torch.stack([torch.arange(length) % size for size in sizes])[None, :, None]


@given(equal_codebooks())
@settings(deadline=None)
def test_usage_follows_its_definition(case):
    subspaces, size, indices = case
    usage, h = measure(CodebookUsage((size,) * subspaces), (indices, 0)), entropies(indices, size)
    used = sum(len(set(token)) for token in indices.transpose(0, 1).flatten(1).tolist())
    assert usage["utilization"] == pytest.approx(used / (subspaces * size))
    assert usage["h_n"] == pytest.approx(h.mean() / math.log(size), abs=1e-12)
    assert usage["p_n"] == pytest.approx(np.exp(h).mean() / size)


@given(equal_codebooks())
@settings(deadline=None)
def test_pooling_adds_the_entropy_of_the_choice_of_subspace(case):
    subspaces, size, indices = case
    usage, mean = measure(CodebookUsage((size,) * subspaces), (indices, 0)), entropies(indices, size).mean()
    expected = (math.log(subspaces) + mean) / (math.log(subspaces) + math.log(size))
    assert usage["h_n_pooled"] == pytest.approx(expected, abs=1e-12)
    assert usage["p_n_pooled"] == pytest.approx(math.exp(mean) / size)
    assert usage["h_n_pooled"] >= usage["h_n"] - 1e-12
    assert usage["p_n_pooled"] <= usage["p_n"] + 1e-12  # Jensen


@pytest.mark.parametrize("sizes", [(4,), (6, 6, 6), (512,) * 4, (1, 1), (2, 1)])
def test_uniform_use_is_one_everywhere(sizes):
    usage = measure(CodebookUsage(sizes), (uniform_tokens(sizes), 0))
    for name in ("utilization", "h_n", "p_n"):
        assert usage[name] == pytest.approx(1), name


@pytest.mark.parametrize(("subspaces", "size"), [(1, 4), (3, 6), (64, 8)])
def test_uniform_use_is_one_when_pooled(subspaces, size):
    usage = measure(CodebookUsage((size,) * subspaces), (uniform_tokens((size,) * subspaces), 0))
    assert usage["h_n_pooled"] == pytest.approx(1)
    assert usage["p_n_pooled"] == pytest.approx(1)


def test_a_single_code_has_no_entropy():
    usage = measure(CodebookUsage((8, 8)), (torch.full((2, 2, 3, 3), 5), 0))
    assert usage["h_n"] == 0
    assert usage["utilization"] == pytest.approx(1 / 8)
    assert usage["p_n"] == pytest.approx(1 / 8)
    assert usage["h_n_pooled"] == pytest.approx(math.log(2) / math.log(16))  # the inflation that pooling brings
    assert usage["p_n_pooled"] == pytest.approx(1 / 8)


def test_half_of_the_codes_in_even_use():
    usage = measure(CodebookUsage((16,) * 3), (uniform_tokens((8,) * 3), 0))
    assert usage["utilization"] == pytest.approx(1 / 2)
    assert usage["h_n"] == pytest.approx(3 / 4)
    assert usage["p_n"] == pytest.approx(1 / 2)


def test_codebooks_of_different_sizes_are_normalized_by_their_own():
    indices = torch.stack([torch.arange(12) % 2, torch.arange(12) % 3])[None, :, None]  # all of 2, half of 6
    usage = measure(CodebookUsage((2, 6)), (indices, 0))
    assert usage["utilization"] == pytest.approx(5 / 8)
    assert usage["h_n"] == pytest.approx((1 + math.log(3) / math.log(6)) / 2)
    assert usage["p_n"] == pytest.approx((1 + 1 / 2) / 2)


def test_rate_counts_bits_of_positions_per_pixel():
    indices = torch.zeros(3, 64, 4, 8, dtype=torch.int64)
    assert measure(BitsPerPixel((512,) * 64), (indices, 3 * 32 * 64)) == pytest.approx(9.0)
    assert measure(BitsPerPixel((6, 5)), (indices[:, :2], 96)) == pytest.approx(math.log2(30))


@given(equal_codebooks())
@settings(deadline=None)
def test_entropy_is_at_most_the_fixed_rate(case):
    subspaces, size, indices = case
    pixels = 7 * indices[:, 0].numel()
    rate = measure(BitsPerPixel((size,) * subspaces), (indices, pixels))
    entropy = measure(EntropyBitsPerPixel((size,) * subspaces), (indices, pixels))
    assert entropy == pytest.approx(entropies(indices, size).sum() / math.log(2) / 7, abs=1e-12)
    assert entropy <= rate + 1e-6


@pytest.mark.parametrize("sizes", [(2,), (5, 3), (16,) * 4, (1, 8)])
def test_entropy_is_the_fixed_rate_for_uniform_use(sizes):
    case = (uniform_tokens(sizes, 3), 100)
    assert measure(EntropyBitsPerPixel(sizes), case) == pytest.approx(float(measure(BitsPerPixel(sizes), case)))


@pytest.mark.parametrize("metric", METRICS)
def test_batches_accumulate_to_one_batch(metric):
    indices = torch.randint(9, (7, 3, 4, 5), generator=torch.Generator().manual_seed(0)) // 2 * 2
    whole = measure(metric((9,) * 3), (indices, 700))
    parts = measure(metric((9,) * 3), *((part, 100 * len(part)) for part in indices.split(3)))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("metric", METRICS)
def test_reset_forgets(metric):
    once = metric((4, 4))
    measure(once, (torch.zeros(1, 2, 2, 2, dtype=torch.int64), 32))
    once.reset()
    case = (uniform_tokens((4, 4)), 50)
    torch.testing.assert_close(measure(once, case), measure(metric((4, 4)), case))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 2, 4, 4), (1, 4, 4, 3), (3,), (1, 3, 2, 2, 2)])
def test_wrong_shapes_raise(metric, shape):
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\)"):
        metric((4, 4, 4)).update(torch.zeros(shape, dtype=torch.int64), 16)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("value", [-1, 4, 5])
def test_tokens_out_of_range_raise(metric, value):
    indices = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    indices[0, 0, 0, 0] = value  # would be counted as the second token's if nobody looked
    with pytest.raises((ValueError, RuntimeError)):
        metric((4, 4)).update(indices, 16)
