"""Tokens as streams of bits: ceil(log2 K) bits per token, whole batches at once, without a Python loop over tokens.

The stream of one sample holds its G token maps one after the other, each row by row, most significant bit first, and is
padded with zeros to whole bytes. Each token map has its own codebook size, up to 2^57. Time and memory depend on the
number of tokens alone: there is no table of codewords.
"""

import math
from functools import lru_cache

import numpy as np

_MOST_BITS = 57  # a token that begins with the last bit of a byte still ends in the eighth byte: 7 + 57 = 64 bits


def bits_per_token(codebook_size: int) -> int:
    """Number of bits that a token with so many values takes in a file; at least 1."""
    return max(1, (codebook_size - 1).bit_length())


def packed_bytes(shape: tuple[int, int, int], codebook_sizes: tuple[int, ...]) -> int:
    """Number of bytes of the tokens of one sample.

    Args:
        shape: `(G, h, w)` of the tokens.
        codebook_sizes: number of values of each of the G tokens, in [1, 2^57].

    Raises:
        ValueError: if the shape does not fit the number of codebooks, or a codebook is too large.
    """
    if len(shape) != 3 or shape[0] != len(codebook_sizes) or min(shape) < 1:
        raise ValueError(f"shape {tuple(shape)} does not fit {len(codebook_sizes)} tokens per position")
    bits = [bits_per_token(size) for size in codebook_sizes]
    if max(bits) > _MOST_BITS:
        raise ValueError(
            f"codebook_sizes has {max(codebook_sizes)}, but tokens can have at most {_MOST_BITS} bits: "
            f"use several tokens, or codebooks of at most 2^{_MOST_BITS} codewords"
        )
    return -(-shape[1] * shape[2] * sum(bits) // 8)


def pack_batch(indices: np.ndarray, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """Pack a batch of tokens.

    Args:
        indices: tokens `(N, G, h, w)` of any integer type; map g holds values in [0, codebook_sizes[g]).
        codebook_sizes: number of values of each of the G tokens, in [1, 2^57].

    Returns:
        uint8 `(N, bytes)`, see `packed_bytes`.

    Raises:
        ValueError: if a token is out of range, or the number of codebooks is not G.
    """
    if len(codebook_sizes) != indices.shape[1]:
        relation = "longer" if len(codebook_sizes) > indices.shape[1] else "shorter"
        raise ValueError(
            f"codebook_sizes ({len(codebook_sizes)}) is {relation} than indices have token maps ({indices.shape[1]})"
        )
    packed_bytes(indices.shape[1:], codebook_sizes)
    limits = np.array(codebook_sizes).reshape(-1, 1, 1)
    if ((indices < 0) | (indices >= limits)).any():
        raise ValueError(f"indices must be in [0, {_one_or_all(codebook_sizes)})")
    word = _word(codebook_sizes)
    tokens = np.ascontiguousarray(indices, dtype=word.newbyteorder(">")).reshape(
        len(indices), math.prod(indices.shape[1:])
    )
    if _fills_words(codebook_sizes):
        return tokens.view(np.uint8)
    stream = np.unpackbits(tokens.view(np.uint8), axis=1)
    return np.packbits(stream[:, _significant(codebook_sizes, indices.shape[2] * indices.shape[3])], axis=1)


def unpack_batch(packed: np.ndarray, shape: tuple[int, int, int], codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """Inverse of `pack_batch`.

    Args:
        packed: uint8 `(N, bytes)`.
        shape: `(G, h, w)` of the tokens of one sample.
        codebook_sizes: number of values of each of the G tokens, in [1, 2^57].

    Returns:
        int64 tokens `(N, G, h, w)`.

    Raises:
        ValueError: if the number of bytes does not fit the shape, or a token is out of range.
    """
    expected = packed_bytes(shape, codebook_sizes)
    if packed.dtype != np.uint8 or packed.ndim != 2 or packed.shape[1] != expected:
        raise ValueError(f"{packed.shape[-1]} bytes of codes, but shape {tuple(shape)} needs {expected}")
    if _fills_words(codebook_sizes):
        tokens = np.ascontiguousarray(packed).view(_word(codebook_sizes).newbyteorder(">")).astype(np.int64)
    else:
        tokens = _read_windows(packed, shape[1] * shape[2], codebook_sizes)
    tokens = tokens.reshape(len(packed), *shape)
    if any(size & (size - 1) or size == 1 for size in codebook_sizes):  # otherwise every pattern of bits is a token
        limits = np.array(codebook_sizes).reshape(-1, 1, 1)
        if (tokens >= limits).any():
            worst = (tokens - limits).max(axis=(0, 2, 3)).argmax()
            raise ValueError(
                f"token {tokens[:, worst].max()} is out of range for a codebook of {codebook_sizes[worst]}"
            )
    return tokens


def _read_windows(packed: np.ndarray, positions: int, codebook_sizes: tuple[int, ...]) -> np.ndarray:
    """Read each token from the few bytes that hold its bits: int64 `(N, G h w)`."""
    first, shifts, masks, width = _windows(codebook_sizes, positions)
    padded = np.pad(packed, ((0, 0), (0, width - 1)))
    kind = np.min_scalar_type(2 ** (8 * width) - 1)
    words = padded[:, first].astype(kind)
    for offset in range(1, width):
        words <<= 8
        words |= padded[:, first + offset]
    words >>= shifts.astype(kind)
    words &= masks.astype(kind)
    return words.astype(np.int64)


@lru_cache(maxsize=16)  # spatial shapes of a data set's buckets
def _windows(codebook_sizes: tuple[int, ...], positions: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """For each token of a sample its first byte, shift to the right and mask; and the number of bytes to read per token."""
    bits = np.repeat([bits_per_token(size) for size in codebook_sizes], positions)
    start = np.cumsum(bits) - bits
    width = int((start % 8 + bits + 7).max() // 8)
    return start // 8, 8 * width - start % 8 - bits, (1 << bits) - 1, width


@lru_cache(maxsize=16)  # spatial shapes of a data set's buckets
def _significant(codebook_sizes: tuple[int, ...], positions: int) -> np.ndarray:
    """Positions of the bits to keep, among the bits of all words of a sample."""
    bits = np.repeat([bits_per_token(size) for size in codebook_sizes], positions)
    length = 8 * _word(codebook_sizes).itemsize
    return (np.arange(length) >= length - bits[:, None]).ravel().nonzero()[0]


def _word(codebook_sizes: tuple[int, ...]) -> np.dtype:
    """Smallest unsigned integer type that holds every token."""
    return np.min_scalar_type(max(codebook_sizes) - 1)


def _fills_words(codebook_sizes: tuple[int, ...]) -> bool:
    """Whether every token takes all bits of its word, so that there is nothing to pack."""
    length = 8 * _word(codebook_sizes).itemsize
    return all(bits_per_token(size) == length for size in codebook_sizes)


def _one_or_all(codebook_sizes: tuple[int, ...]) -> str:
    return str(codebook_sizes[0]) if len(set(codebook_sizes)) == 1 else f"K) with K = {codebook_sizes}"
