"""Codes of one image as a file: bit-packed tokens in safetensors, with all that turns them back into pixels."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import atomic_file

_FORMAT = "pqdiff-codes-1"


@dataclass
class ImageCodes:
    """Tokens of one image.

    Attributes:
        indices: int64 tokens `(G, h, w)`.
        codebook_sizes: number of values of each of the G tokens.
        height: height of the original image in pixels; the coded one may be padded.
        width: its width.
        model: name of the tokenizer, for people.
        fingerprint: content hash of the tokenizer, for machines.
    """

    indices: torch.Tensor
    codebook_sizes: tuple[int, ...]
    height: int
    width: int
    model: str
    fingerprint: str


def save_codes(codes: ImageCodes, path: str | Path) -> int:
    """Write codes with ceil(log2 K) bits a token; returns the number of bytes of packed tokens."""
    header = {key: value for key, value in asdict(codes).items() if key != "indices"}
    header |= {"format": _FORMAT, "shape": list(codes.indices.shape)}
    packed = pack_indices(codes.indices, codes.codebook_sizes)
    with atomic_file(path) as temporary:
        save_file({"codes": packed}, temporary, metadata={"pqdiff": json.dumps(header)})
    return packed.numel()


def load_codes(path: str | Path) -> ImageCodes:
    """Read what `save_codes` wrote.

    Raises:
        ValueError: naming the file, if it is missing, corrupt, truncated or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get("pqdiff", "{}"))
            if not isinstance(header, dict) or header.get("format") != _FORMAT:
                raise ValueError("a safetensors file, but not of codes")
            _check_header(header)
            packed = file.get_tensor("codes")
        shape, sizes = tuple(header["shape"]), tuple(header["codebook_sizes"])
        indices = unpack_indices(packed, shape, sizes)
        names = ("height", "width", "model", "fingerprint")
        return ImageCodes(indices, sizes, **{name: header[name] for name in names})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: cannot be read as pqdiff codes ({error})") from None


def _check_header(header: dict) -> None:
    """ValueError unless every entry has the type and range that `save_codes` writes."""
    whole = {"height": [header["height"]], "width": [header["width"]]}
    whole |= {"shape": header["shape"], "codebook_sizes": header["codebook_sizes"]}
    for name, values in whole.items():
        if not isinstance(values, list) or not all(type(value) is int and value > 0 for value in values):
            raise ValueError(f"{name} must be whole and positive")
    for name in ("model", "fingerprint"):
        if not isinstance(header[name], str):
            raise ValueError(f"{name} must be text")


def bits_per_token(codebook_size: int) -> int:
    """Whole bits that a token takes in a file."""
    return max(1, (codebook_size - 1).bit_length())


def pack_indices(indices: torch.Tensor, codebook_sizes: tuple[int, ...]) -> torch.Tensor:
    """Tokens `(G, h, w)` as a stream of bits in uint8, one token map after the other, most significant bit first."""
    streams = []
    for plane, size in zip(indices.flatten(1).numpy(), codebook_sizes, strict=True):
        if plane.min(initial=0) < 0 or plane.max(initial=0) >= size:
            raise ValueError(f"indices must be in [0, {size})")
        shifts = np.arange(bits_per_token(size) - 1, -1, -1)
        streams.append((plane[:, None] >> shifts & 1).astype(np.uint8).ravel())
    return torch.from_numpy(np.packbits(np.concatenate(streams)))


def unpack_indices(packed: torch.Tensor, shape: tuple[int, int, int], codebook_sizes: tuple[int, ...]) -> torch.Tensor:
    """Inverse of `pack_indices`: int64 tokens of the given shape `(G, h, w)`.

    Raises:
        ValueError: if the number of bytes does not fit the shape, or a token is out of range.
    """
    if len(shape) != 3 or shape[0] != len(codebook_sizes) or min(shape) < 1:
        raise ValueError(f"shape {tuple(shape)} does not fit {len(codebook_sizes)} tokens per position")
    positions = shape[1] * shape[2]
    total = positions * sum(map(bits_per_token, codebook_sizes))
    if packed.dtype != torch.uint8 or packed.ndim != 1 or packed.numel() != -(-total // 8):
        raise ValueError(f"{packed.numel()} bytes of codes, but shape {tuple(shape)} needs {-(-total // 8)}")
    stream = np.unpackbits(packed.numpy(), count=total)
    indices, start = np.empty((shape[0], positions), dtype=np.int64), 0
    for plane, size in zip(indices, codebook_sizes, strict=True):
        bits = bits_per_token(size)
        plane[:] = stream[start : start + positions * bits].reshape(positions, bits) @ (1 << np.arange(bits)[::-1])
        if plane.max() >= size:
            raise ValueError(f"token {plane.max()} is out of range for a codebook of {size}")
        start += positions * bits
    return torch.from_numpy(indices.reshape(shape))
