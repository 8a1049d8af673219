"""Bit-packed tokens against a packer made of strings, and files of codes that are not what they should be."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from pqdiff.data.codes import ImageCodes, bits_per_token, load_codes, pack_indices, save_codes, unpack_indices

SIZES = st.one_of(st.integers(1, 9), st.sampled_from([16, 17, 127, 128, 129, 255, 256, 257, 512, 1000, 4096, 65537]))


@st.composite
def tokens(draw):
    """Tokens (G, h, w) and their codebook sizes; the extremes of each codebook are frequent."""
    sizes = tuple(draw(st.lists(SIZES, min_size=1, max_size=5)))
    height, width = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    planes = [rng.integers(0, size, (height, width)) for size in sizes]
    for plane, size in zip(planes, sizes, strict=True):
        plane[rng.random(plane.shape) < 0.2] = size - 1
        plane[rng.random(plane.shape) < 0.2] = 0
    return torch.from_numpy(np.stack(planes)), sizes


def reference_pack(indices, sizes):
    """The stream as a string of binary digits, padded with zeros to whole bytes."""
    digits = ""
    for plane, size in zip(indices.tolist(), sizes, strict=True):
        width = len(f"{size - 1:b}")
        digits += "".join(f"{token:0{width}b}" for row in plane for token in row)
    digits += "0" * (-len(digits) % 8)
    return [int(digits[i : i + 8], 2) for i in range(0, len(digits), 8)]


def some_codes(**changes):
    generator = torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(size, (3, 4), generator=generator) for size in (5, 2, 512)])
    return ImageCodes(**{
        "indices": indices, "codebook_sizes": (5, 2, 512), "height": 23, "width": 30, "model": "some/model",
        "fingerprint": "0123456789abcdef", **changes,
    })  # fmt: skip


def rewrite(path, **changes):
    """The file of codes with another header; an ellipsis removes a key."""
    with safe_open(path, framework="pt") as file:
        header, packed = json.loads(file.metadata()["pqdiff"]), file.get_tensor("codes")
    header = {key: value for key, value in {**header, **changes}.items() if value is not ...}
    save_file({"codes": packed}, path, metadata={"pqdiff": json.dumps(header)})


@given(tokens())
@settings(deadline=None)
def test_unpacking_undoes_packing(case):
    indices, sizes = case
    result = unpack_indices(pack_indices(indices, sizes), tuple(indices.shape), sizes)
    assert result.dtype == torch.int64
    assert torch.equal(result, indices)


@given(tokens())
@settings(deadline=None)
def test_packing_agrees_with_strings_of_digits(case):
    indices, sizes = case
    packed = pack_indices(indices, sizes)
    assert packed.dtype == torch.uint8
    assert packed.tolist() == reference_pack(indices, sizes)


@given(tokens())
@settings(deadline=None)
def test_packed_size_is_the_total_of_bits_in_whole_bytes(case):
    indices, sizes = case
    positions = indices.shape[1] * indices.shape[2]
    total = positions * sum(max(1, math.ceil(math.log2(size))) for size in sizes)
    assert pack_indices(indices, sizes).numel() == math.ceil(total / 8)


@pytest.mark.parametrize(
    ("size", "bits"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3), (128, 7), (129, 8), (256, 8), (257, 9), (512, 9)]
)
def test_a_token_takes_whole_bits(size, bits):
    assert bits_per_token(size) == bits


@pytest.mark.parametrize("dtype", [torch.int32, torch.int16, torch.uint8])
def test_tokens_of_any_integer_type_and_memory_order_pack_alike(dtype):
    indices = torch.arange(24).view(2, 3, 4)
    expected = pack_indices(indices, (100, 30))
    shuffled = indices.permute(2, 0, 1).contiguous().permute(1, 2, 0).to(dtype)
    assert torch.equal(pack_indices(shuffled, (100, 30)), expected)


@pytest.mark.parametrize("value", [-1, 6, 7, 8])
def test_tokens_out_of_range_are_not_packed(value):
    with pytest.raises(ValueError, match=r"\[0, 6\)"):
        pack_indices(torch.tensor([[[0, value]]]), (6,))


def test_number_of_codebooks_must_fit_the_tokens():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        pack_indices(torch.zeros(2, 3, 3, dtype=torch.int64), (4, 4, 4))


@pytest.mark.parametrize(
    ("packed", "shape", "sizes"),
    [
        (torch.zeros(1, dtype=torch.uint8), (1, 3, 3), (2,)),  # too few bytes
        (torch.zeros(3, dtype=torch.uint8), (1, 3, 3), (2,)),  # too many
        (torch.zeros(2, dtype=torch.int8), (1, 3, 3), (2,)),
        (torch.zeros(1, 2, dtype=torch.uint8), (1, 3, 3), (2,)),
        (torch.zeros(2, dtype=torch.uint8), (9,), (2,)),
        (torch.zeros(2, dtype=torch.uint8), (1, 3, 3), (2, 2)),
        (torch.zeros(0, dtype=torch.uint8), (1, 0, 3), (2,)),
        (torch.full((2,), 255, dtype=torch.uint8), (1, 2, 3), (3,)),  # token 3 in a codebook of 3
    ],
)
def test_bytes_that_do_not_fit_are_not_unpacked(packed, shape, sizes):
    with pytest.raises(ValueError, match=r"bytes of codes|does not fit|out of range"):
        unpack_indices(packed, shape, sizes)


def test_a_file_returns_what_was_saved_and_says_its_size(tmp_path):
    codes = some_codes()
    size = save_codes(codes, tmp_path / "deep" / "x.pq.safetensors")
    loaded = load_codes(str(tmp_path / "deep" / "x.pq.safetensors"))
    assert size == math.ceil(12 * (3 + 1 + 9) / 8)
    assert torch.equal(loaded.indices, codes.indices)
    for name in ("codebook_sizes", "height", "width", "model", "fingerprint"):
        assert getattr(loaded, name) == getattr(codes, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.pq.safetensors"]


def test_a_file_is_little_more_than_its_tokens(tmp_path):
    indices = torch.randint(512, (64, 32, 32), generator=torch.Generator().manual_seed(0))
    path = tmp_path / "x.pq.safetensors"
    size = save_codes(some_codes(indices=indices, codebook_sizes=(512,) * 64, height=256, width=256), path)
    assert size == 64 * 32 * 32 * 9 // 8
    assert path.stat().st_size < size + 2048


def assert_refused(path, reason=None):
    with pytest.raises(ValueError, match=reason) as raised:
        load_codes(path)
    assert str(path) in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("kept", [0, 4, 8, 50, 200, -1])
def test_a_truncated_file_is_refused(tmp_path, kept):
    path = tmp_path / "x.pq.safetensors"
    save_codes(some_codes(), path)
    path.write_bytes(path.read_bytes()[:kept])
    assert_refused(path)


def test_bytes_and_texts_that_are_no_safetensors_are_refused(tmp_path):
    for name, content in {"noise": bytes(range(256)) * 4, "text": b"not codes\n" * 50, "png": b"\x89PNG\r\n"}.items():
        path = tmp_path / f"{name}.pq.safetensors"
        path.write_bytes(content)
        assert_refused(path)


def test_missing_files_and_folders_are_refused(tmp_path):
    assert_refused(tmp_path / "missing.pq.safetensors", "no such file")
    assert_refused(tmp_path)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"pqdiff": '{"format": "another"}'}])
def test_safetensors_of_another_kind_are_refused(tmp_path, metadata):
    path = tmp_path / "weights.safetensors"
    save_file({"codes": torch.zeros(4, dtype=torch.uint8)}, path, metadata=metadata)
    assert_refused(path, "not of codes")


@pytest.mark.parametrize("text", ["{", "[]", "3", "null", '"text"'])
def test_a_header_that_is_no_json_object_is_refused(tmp_path, text):
    path = tmp_path / "x.pq.safetensors"
    save_file({"codes": torch.zeros(4, dtype=torch.uint8)}, path, metadata={"pqdiff": text})
    assert_refused(path)


def test_a_file_without_its_tensor_is_refused(tmp_path):
    path = tmp_path / "x.pq.safetensors"
    save_codes(some_codes(), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file({"other": torch.zeros(20, dtype=torch.uint8)}, path, metadata=metadata)
    assert_refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3, 3, 5]},
        {"shape": [3, 12]},
        {"shape": [3, 10**12, 10**12]},
        {"shape": [3, -3, -4]},
        {"shape": [3.0, 3.0, 4.0]},
        {"shape": "344"},
        {"shape": None},
        {"codebook_sizes": [5, 2]},
        {"codebook_sizes": [5, 2, 300]},
        {"codebook_sizes": [5, 2, 0]},
        {"codebook_sizes": [5.0, 2.0, 512.0]},
        {"codebook_sizes": 512},
        {"codebook_sizes": ["5", "2", "512"]},
        {"height": "23"},
        {"height": 23.5},
        {"height": 0},
        {"width": None},
        {"width": -30},
        {"model": None},
        {"model": 7},
        *({key: ...} for key in ("shape", "codebook_sizes", "height", "width", "model", "fingerprint", "format")),
    ],
    ids=str,
)
def test_a_header_that_does_not_fit_is_refused(tmp_path, change):
    path = tmp_path / "x.pq.safetensors"
    save_codes(some_codes(), path)
    rewrite(path)
    load_codes(path)  # rewriting by itself does no harm
    rewrite(path, **change)
    assert_refused(path)


def test_tokens_out_of_range_in_a_file_are_refused(tmp_path):
    path = tmp_path / "x.pq.safetensors"
    save_codes(some_codes(indices=torch.full((3, 3, 4), 7), codebook_sizes=(8, 8, 8)), path)
    rewrite(path, codebook_sizes=[8, 8, 7])  # as many bits, but 7 is no token now
    assert_refused(path, "out of range")


@pytest.mark.parametrize(
    "change",
    [
        {"indices": torch.full((3, 3, 4), 5)},  # no such token in the first codebook
        {"codebook_sizes": (5, 2)},
        {"model": object()},  # fails when the header is written
    ],
    ids=["range", "sizes", "header"],
)
@pytest.mark.parametrize("exists", [False, True])
def test_saving_that_fails_leaves_no_file_behind(tmp_path, change, exists):
    path = tmp_path / "x.pq.safetensors"
    if exists:
        save_codes(some_codes(), path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises((ValueError, TypeError)):
        save_codes(some_codes(**change), path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
