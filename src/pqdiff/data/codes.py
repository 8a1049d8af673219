"""Codes of one image as a file: bit-packed tokens in safetensors, with all that turns them back into pixels."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .files import atomic_file
from .packing import bits_per_token, pack_batch, unpack_batch

__all__ = ["ImageCodes", "bits_per_token", "load_codes", "pack_indices", "save_codes", "unpack_indices"]

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


def pack_indices(indices: torch.Tensor, codebook_sizes: tuple[int, ...]) -> torch.Tensor:
    """Tokens `(G, h, w)` as a stream of bits in uint8, one token map after the other, most significant bit first."""
    return torch.from_numpy(pack_batch(indices.numpy()[None], codebook_sizes)[0])


def unpack_indices(packed: torch.Tensor, shape: tuple[int, int, int], codebook_sizes: tuple[int, ...]) -> torch.Tensor:
    """Inverse of `pack_indices`: int64 tokens of the given shape `(G, h, w)`.

    Raises:
        ValueError: if the number of bytes does not fit the shape, or a token is out of range.
    """
    return torch.from_numpy(unpack_batch(packed.numpy()[None], shape, codebook_sizes)[0])
