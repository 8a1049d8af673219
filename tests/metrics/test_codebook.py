"""Rates and codebook use against their definitions and the identities between them."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.metrics import BitsPerPixel, CodebookUsage, EntropyBitsPerPixel, TokenCounts

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
@pytest.mark.parametrize("sizes", [(9,) * 3, (2**30,) * 3])
def test_batches_accumulate_to_one_batch(metric, sizes):
    indices = torch.randint(9, (7, 3, 4, 5), generator=torch.Generator().manual_seed(0)) // 2 * 2
    whole = measure(metric(sizes), (indices, 700))
    parts = measure(metric(sizes), *((part, 100 * len(part)) for part in indices.split(3)))
    torch.testing.assert_close(parts, whole)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("sizes", [(4, 4), (4, 2**30)])
def test_reset_forgets(metric, sizes):
    once = metric(sizes)
    measure(once, (torch.zeros(1, 2, 2, 2, dtype=torch.int64), 32))
    once.reset()
    case = (uniform_tokens((4, 4)), 50)
    torch.testing.assert_close(measure(once, case), measure(metric(sizes), case))


@pytest.mark.parametrize("shape", [(2, 4, 4), (1, 2, 4, 4), (1, 4, 4, 3), (3,), (1, 3, 2, 2, 2)])
def test_wrong_shapes_raise(shape):
    with pytest.raises(ValueError, match=r"\(B, 3, h, w\)"):
        TokenCounts((4, 4, 4)).update(torch.zeros(shape, dtype=torch.int64), 16)


@pytest.mark.parametrize("sizes", [(4, 4), (4, 2**30)])
@pytest.mark.parametrize("value", [-1, 4, 5])
def test_tokens_out_of_range_raise(sizes, value):
    indices = torch.zeros(1, 2, 2, 2, dtype=torch.int64)
    indices[0, 0, 0, 0] = value  # a table would count it for the second token
    with pytest.raises(ValueError, match="out of range for their codebooks"):
        TokenCounts(sizes).update(indices, 16)


@st.composite
def batches_of_tokens(draw):
    """Codebook sizes, some of them too large for a table, and batches of tokens (B, G, h, w) with repetitions."""
    size = st.one_of(st.integers(1, 9), st.sampled_from([2**24 + 1, 2**40, 2**62]))
    sizes = draw(st.lists(size, min_size=1, max_size=4))
    batches = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        low = [rng.integers(0, min(size, 5), shape) for size in sizes]
        tokens = [np.where(rng.random(shape) < 0.3, size - 1 - x, x) for size, x in zip(sizes, low, strict=True)]
        batches.append(torch.from_numpy(np.stack(tokens, axis=1)))
    return tuple(sizes), batches


@given(batches_of_tokens())
@settings(deadline=None, max_examples=50)
def test_counts_are_those_of_a_counter(case):
    sizes, batches = case
    metric, counters, positions = TokenCounts(sizes), [Counter() for _ in sizes], 0
    for indices in batches:
        metric.update(indices, 10)
        positions += indices[:, 0].numel()
        for token, counter in enumerate(counters):
            counter.update(indices[:, token].flatten().tolist())
    entropies = [-sum(n / positions * math.log(n / positions) for n in c.values()) for c in counters]
    values, total = {name: float(value) for name, value in metric.compute().items()}, sum(sizes)
    pooled = [n / positions / len(sizes) for counter in counters for n in counter.values()]
    pooled_entropy = -sum(p * math.log(p) for p in pooled)
    expected = {
        "bits_per_pixel": positions * sum(map(math.log2, sizes)) / (10 * len(batches)),
        "entropy_bits_per_pixel": positions * sum(entropies) / math.log(2) / (10 * len(batches)),
        "codebook_utilization": sum(map(len, counters)) / total,
        "codebook_h_n": np.mean([h / math.log(k) if k > 1 else 1 for h, k in zip(entropies, sizes, strict=True)]),
        "codebook_p_n": np.mean([math.exp(h) / k for h, k in zip(entropies, sizes, strict=True)]),
        "codebook_h_n_pooled": pooled_entropy / math.log(total) if total > 1 else math.nan,
        "codebook_p_n_pooled": math.exp(pooled_entropy) / total,
    }
    assert metric.num_positions == positions
    assert values == pytest.approx(expected, rel=1e-5, abs=1e-12, nan_ok=True)
    if total <= 2**24:
        for counts, counter, size in zip(metric.counts_per_token(), counters, sizes, strict=True):
            assert counts.tolist() == [counter[value] for value in range(size)]
    else:
        merged = Counter()
        for token, value, count in torch.cat(metric.entries).tolist():
            merged[token, value] += count
        assert merged == Counter({(t, v): n for t, c in enumerate(counters) for v, n in c.items()})


def test_memory_is_for_values_that_occur():
    metric = TokenCounts((2**62, 2**62))
    indices = torch.tensor([0, 7, 2**62 - 1]).view(1, 1, 1, 3).expand(1, 2, 4, 3)
    for _ in range(20):
        metric.update(indices, 12)
    assert sum(map(len, metric.entries)) <= 2 * 6
    with pytest.raises(ValueError, match=r"counts_per_token takes at most 16,777,216: use the entries"):
        metric.counts_per_token()


@pytest.mark.parametrize("sizes", [(4, 3), (2**40, 3)])
def test_counts_survive_a_state_dict(sizes):
    first, second = TokenCounts(sizes), TokenCounts(sizes)
    indices = torch.tensor([[1, 2, 1], [0, 2, 2]]).view(1, 2, 1, 3)
    first.update(indices, 3)
    first.persistent(True)
    second.persistent(True)
    second.load_state_dict(first.state_dict())
    second.update(indices, 3)
    first.update(indices, 3)
    torch.testing.assert_close(second.compute(), first.compute())


@pytest.mark.parametrize("sizes", [(), (4, 0), (2**62 + 1,)])
def test_codebook_sizes_out_of_range_are_refused(sizes):
    with pytest.raises(ValueError, match=r"codebook_sizes .* must be numbers from 1 to 2\^62"):
        TokenCounts(sizes)


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")  # of torchmetrics
@pytest.mark.parametrize("sizes", [(4, 3), (2**40, 3)])
def test_nothing_counted_is_not_a_number(sizes):
    assert all(value.isnan() for name, value in TokenCounts(sizes).compute().items() if "utilization" not in name)
