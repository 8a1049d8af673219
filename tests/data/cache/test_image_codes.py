"""Files of codes return what was saved, and files that are not what they should be are refused in one line."""

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pqdiff.data.cache.image_codes import ImageCodes, load_codes, save_codes


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


def test_a_file_returns_what_was_saved_and_says_its_size(tmp_path):
    codes = some_codes()
    size = save_codes(codes, tmp_path / "deep" / "x.pq.safetensors")
    loaded = load_codes(str(tmp_path / "deep" / "x.pq.safetensors"))
    assert size == math.ceil(12 * (3 + 1 + 9) / 8)
    assert torch.equal(loaded.indices, codes.indices)
    for name in ("codebook_sizes", "height", "width", "model", "fingerprint"):
        assert getattr(loaded, name) == getattr(codes, name)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["x.pq.safetensors"]


def test_codebooks_of_any_sizes_can_share_a_file(tmp_path):
    """Binary codes have 2^57 codewords and more, which nobody can count."""
    sizes, generator = (2**57, 3, 1, 2**20), torch.Generator().manual_seed(0)
    indices = torch.stack([torch.randint(size, (3, 4), generator=generator) for size in sizes])
    indices[0, 0, :2] = torch.tensor([0, 2**57 - 1])
    size = save_codes(some_codes(indices=indices, codebook_sizes=sizes), tmp_path / "x.pq.safetensors")
    loaded = load_codes(tmp_path / "x.pq.safetensors")
    assert size == math.ceil(12 * (57 + 2 + 1 + 20) / 8)
    assert torch.equal(loaded.indices, indices)
    assert loaded.codebook_sizes == sizes


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


def test_the_header_alone_has_the_shape_and_takes_no_memory(tmp_path):
    path = tmp_path / "x.pq.safetensors"
    save_codes(some_codes(indices=torch.zeros(3, 1000, 1000, dtype=torch.int64)), path)
    codes = load_codes(path, header_only=True)
    assert (codes.indices.shape, codes.indices.device.type) == ((3, 1000, 1000), "meta")
    assert codes.codebook_sizes == load_codes(path).codebook_sizes


def test_more_pixels_than_any_image_has_are_refused(tmp_path):
    path = tmp_path / "x.pq.safetensors"
    save_codes(some_codes(), path)
    rewrite(path, height=10**5, width=10**5)
    assert_refused(path, "100000 x 100000 pixels")
