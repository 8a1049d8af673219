"""The tokens of one image as a file: packed bits in safetensors, with everything that turns them back into pixels."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from pqdiff.data.cache.bit_packing import pack_batch, packed_bytes, unpack_batch
from pqdiff.data.files import atomic_file
from pqdiff.data.images.opening import MOST_PIXELS
from pqdiff.json_text import parse_json

_FORMAT = "pqdiff-codes-1"


@dataclass
class ImageCodes:
    """Tokens of one image.

    Attributes:
        indices: int64 tokens `(G, h, w)`.
        codebook_sizes: number of values of each of the G tokens.
        height: height of the original image in pixels; the encoded image may be padded to more.
        width: width of the original image.
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
    """Write a file with ceil(log2 K) bits per token, at least one.

    Returns:
        Number of bytes of the packed tokens, without the header.

    Raises:
        ValueError: if a token is out of range, or the number of codebooks is not G.
    """
    header = {key: value for key, value in vars(codes).items() if key != "indices"}
    header |= {"format": _FORMAT, "shape": list(codes.indices.shape)}
    packed = torch.from_numpy(pack_batch(codes.indices.numpy()[None], codes.codebook_sizes)[0])
    with atomic_file(path) as temporary:
        save_file({"codes": packed}, temporary, metadata={"pqdiff": json.dumps(header)})
    return packed.numel()


def load_codes(path: str | Path, header_only: bool = False) -> ImageCodes:
    """Read what `save_codes` wrote.

    Args:
        path: the file.
        header_only: leave the tokens packed: `indices` has its shape, but no values (it is on the device `meta`). Before
            tokens of a stranger are unpacked, which takes up to 300 times the file's size, compare shape and sizes.

    Raises:
        ValueError: naming the file, if it is missing, corrupt, truncated, too large or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json((file.metadata() or {}).get("pqdiff", "{}"))
            if not isinstance(header, dict) or header.get("format") != _FORMAT:
                raise ValueError("it is a safetensors file, but not of codes")
            _check_header(header)
            shape, sizes = tuple(header["shape"]), tuple(header["codebook_sizes"])
            packed, expected = file.get_slice("codes"), packed_bytes(shape, sizes)
            if packed.get_shape() != [expected]:
                raise ValueError(f"{packed.get_shape()} bytes of codes, but shape {shape} needs {expected}")
            if header_only:
                indices = torch.empty(shape, dtype=torch.int64, device="meta")
            else:
                indices = torch.from_numpy(unpack_batch(packed[:].numpy()[None], shape, sizes)[0])
        names = ("height", "width", "model", "fingerprint")
        return ImageCodes(indices, sizes, **{name: header[name] for name in names})
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(f"{path}: cannot be read as pqdiff codes ({' '.join(str(error).split())})") from None


def _check_header(header: dict) -> None:
    """ValueError unless every entry has the type and range that `save_codes` writes."""
    whole = {"height": [header["height"]], "width": [header["width"]]}
    whole |= {"shape": header["shape"], "codebook_sizes": header["codebook_sizes"]}
    for name, values in whole.items():
        if not isinstance(values, list) or not all(type(value) is int and value > 0 for value in values):
            raise ValueError(f"{name} must be positive integers, got {values!r:.80}")
    if header["height"] * header["width"] > MOST_PIXELS:
        raise ValueError(f"{header['height']} x {header['width']} pixels, at most {MOST_PIXELS:,} are read")
    for name in ("model", "fingerprint"):
        if not isinstance(header[name], str):
            raise ValueError(f"{name} must be text, got {header[name]!r:.80}")
