"""Whole batches of tokens to bits and back, against Python's own digits."""

import statistics
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.data.packing import bits_per_token, pack_batch, packed_bytes, unpack_batch

SIZES = st.one_of(
    st.integers(1, 9), st.sampled_from([127, 128, 129, 255, 256, 257, 512, 4096, 65536, 65537, 2**25 + 1, 2**40])
)


@st.composite
def batches(draw):
    """Tokens (N, G, h, w) and codebook sizes, all equal or each its own."""
    groups = draw(st.integers(1, 5))
    equal = st.tuples(SIZES).map(lambda size: size * groups)
    sizes = draw(st.one_of(equal, st.tuples(*[SIZES] * groups)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(1, 5)), draw(st.integers(1, 5)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = np.stack([rng.integers(0, size, shape) for size in sizes], axis=1)
    largest = np.array(sizes).reshape(1, -1, 1, 1) - 1
    return np.where(rng.random(tokens.shape) < 0.2, largest, tokens), sizes


@given(batches())
@settings(deadline=None)
def test_unpacking_undoes_packing(case):
    tokens, sizes = case
    packed = pack_batch(tokens, sizes)
    assert packed.shape == (len(tokens), packed_bytes(tokens.shape[1:], sizes))
    result = unpack_batch(packed, tokens.shape[1:], sizes)
    assert result.dtype == np.int64
    np.testing.assert_array_equal(result, tokens)


@given(batches())
@settings(deadline=None)
def test_each_sample_is_its_digits_in_order(case):
    tokens, sizes = case
    for sample, packed in zip(tokens.tolist(), pack_batch(tokens, sizes), strict=True):
        digits = "".join(
            f"{token:0{bits_per_token(size)}b}"
            for plane, size in zip(sample, sizes, strict=True)
            for row in plane
            for token in row
        )
        padded = digits + "0" * (-len(digits) % 8)
        assert packed.tobytes() == int(padded, 2).to_bytes(len(padded) // 8, "big")


def test_an_empty_batch_stays_empty():
    packed = pack_batch(np.zeros((0, 2, 3, 3), dtype=np.int64), (9, 9))
    assert packed.shape == (0, packed_bytes((2, 3, 3), (9, 9)))
    assert unpack_batch(packed, (2, 3, 3), (9, 9)).shape == (0, 2, 3, 3)


def test_tokens_out_of_range_are_refused_on_both_sides():
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        pack_batch(np.full((1, 1, 2, 2), 5), (5,))
    with pytest.raises(ValueError, match="token 6 is out of range for a codebook of 5"):
        unpack_batch(pack_batch(np.full((1, 1, 2, 2), 6), (8,)), (1, 2, 2), (5,))


def test_codebooks_beyond_a_machine_word_are_refused():
    with pytest.raises(ValueError, match="57 bits"):
        packed_bytes((1, 2, 2), (2**60,))


def test_a_batch_of_nine_bit_tokens_takes_a_few_milliseconds():
    """Measured at 0.4 ms; the bound leaves room for a busy machine."""
    sizes = (512,) * 64
    packed = pack_batch(np.random.default_rng(0).integers(0, 512, (64, 64, 8, 8)), sizes)
    times = []
    for _ in range(9):
        start = time.perf_counter()
        unpack_batch(packed, (64, 8, 8), sizes)
        times.append(time.perf_counter() - start)
    assert statistics.median(times) < 0.01
