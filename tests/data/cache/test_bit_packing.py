"""Whole batches of tokens become bits and tokens again, checked against Python's own binary digits."""

import tracemalloc
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pqdiff.data.cache.bit_packing import bits_per_token, pack_batch, packed_bytes, unpack_batch
from tests.data.cache.support import count_calls

BOUNDARIES = (127, 128, 129, 255, 256, 257, 512, 4096, 65536, 65537, 2**25 + 1, 2**40, 2**56 + 1, 2**57)
SIZES = st.one_of(st.integers(1, 9), st.sampled_from(BOUNDARIES))


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


@pytest.mark.parametrize(
    ("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8), (256, 8), (257, 9), (512, 9)]
)
def test_a_token_takes_whole_bits(size, bits):
    assert bits_per_token(size) == bits


@pytest.mark.parametrize("dtype", [np.int32, np.int16, np.uint8, np.uint64])
def test_tokens_of_any_integer_type_and_memory_order_pack_alike(dtype):
    tokens = np.arange(48).reshape(2, 2, 3, 4)
    scattered = np.ascontiguousarray(tokens.transpose(2, 3, 1, 0)).transpose(3, 2, 0, 1).astype(dtype)
    np.testing.assert_array_equal(pack_batch(scattered, (100, 60)), pack_batch(tokens, (100, 60)))


def test_an_empty_batch_stays_empty():
    packed = pack_batch(np.zeros((0, 2, 3, 3), dtype=np.int64), (9, 9))
    assert packed.shape == (0, packed_bytes((2, 3, 3), (9, 9)))
    assert unpack_batch(packed, (2, 3, 3), (9, 9)).shape == (0, 2, 3, 3)


@pytest.mark.parametrize("value", [-1, 6, 7, 8])
def test_tokens_out_of_range_are_not_packed(value):
    with pytest.raises(ValueError, match=r"\[0, 6\)"):
        pack_batch(np.array([[[[0, value]]]]), (6,))


def test_number_of_codebooks_must_fit_the_tokens():
    for sizes, relation in (((4, 4, 4), "longer"), ((4,), "shorter")):
        with pytest.raises(ValueError, match=relation):
            pack_batch(np.zeros((1, 2, 3, 3), dtype=np.int64), sizes)


@pytest.mark.parametrize(
    ("packed", "shape", "sizes"),
    [
        (np.zeros((1, 1), dtype=np.uint8), (1, 3, 3), (2,)),  # too few bytes
        (np.zeros((1, 3), dtype=np.uint8), (1, 3, 3), (2,)),  # too many
        (np.zeros((1, 2), dtype=np.int8), (1, 3, 3), (2,)),
        (np.zeros((1, 1, 2), dtype=np.uint8), (1, 3, 3), (2,)),
        (np.zeros((1, 2), dtype=np.uint8), (9,), (2,)),
        (np.zeros((1, 2), dtype=np.uint8), (1, 3, 3), (2, 2)),
        (np.zeros((1, 0), dtype=np.uint8), (1, 0, 3), (2,)),
        (np.full((1, 2), 255, dtype=np.uint8), (1, 2, 3), (3,)),  # token 3 in a codebook of 3
    ],
)
def test_bytes_that_do_not_fit_are_not_unpacked(packed, shape, sizes):
    with pytest.raises(ValueError, match=r"bytes of codes|does not fit|out of range"):
        unpack_batch(packed, shape, sizes)


def test_tokens_out_of_range_are_refused_on_both_sides():
    with pytest.raises(ValueError, match=r"\[0, 5\)"):
        pack_batch(np.full((1, 1, 2, 2), 5), (5,))
    with pytest.raises(ValueError, match="token 6 is out of range for a codebook of 5"):
        unpack_batch(pack_batch(np.full((1, 1, 2, 2), 6), (8,)), (1, 2, 2), (5,))


def test_codebooks_beyond_a_machine_word_are_refused():
    assert packed_bytes((1, 2, 2), (2**57,)) == 29
    for size in (2**57 + 1, 2**64):
        with pytest.raises(ValueError, match=f"codebook_sizes has {size}, but tokens can have at most 57 bits"):
            packed_bytes((2, 2, 2), (size, 3))


@pytest.mark.parametrize("sizes", [(512,) * 4, (5, 512, 300, 2), (256,) * 4, (2**57, 3, 2**20, 2**57 - 1)], ids=str)
def test_more_samples_and_tokens_need_no_more_calls(sizes):
    """All work is done by NumPy on whole batches: no Python loop over samples or tokens."""

    def calls(count, side):
        tokens = np.zeros((count, 4, side, side), dtype=np.int64)
        packed = pack_batch(tokens, sizes)
        unpack = partial(unpack_batch, packed, tokens.shape[1:], sizes)
        return count_calls(partial(pack_batch, tokens, sizes)), count_calls(unpack)

    assert calls(1, 8) == calls(64, 8) == calls(3, 32)


@pytest.mark.parametrize("size", [2**20 - 1, 2**40, 2**57])
def test_memory_is_for_tokens_and_not_for_codewords(size):
    sizes, rng = (size, 7, 1), np.random.default_rng(0)
    tokens = np.stack([rng.integers(0, largest, (4, 8, 8)) for largest in sizes], axis=1)
    tracemalloc.start()
    try:
        result = unpack_batch(pack_batch(tokens, sizes), (3, 8, 8), sizes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(result, tokens)
    assert peak < 500 * tokens.size  # bytes; a byte per codeword would be a million or more
