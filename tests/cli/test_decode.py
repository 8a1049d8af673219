"""`pqdiff decode`: the same pixels as `pqdiff reconstruct`, and files that it refuses."""

import json
import shutil
import tracemalloc

import huggingface_hub
import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pqdiff import AutoencoderPQ
from pqdiff.checkpoints import BUNDLED
from pqdiff.data.cache.image_codes import ImageCodes, load_codes, save_codes
from pqdiff.models.fingerprint import fingerprint
from tests.cli.support import (
    BAD_CODES,
    assert_done,
    assert_refused,
    bad_codes,
    encoded,
    files_in,
    pixels_of,
    save,
)
from tests.hub.hub_server import serve_hub


@pytest.mark.parametrize("size", [(40, 56), (13, 29), (1, 1)])
def test_encode_then_decode_is_reconstruct(tmp_path, pqdiff, f8, size):
    original = save(tmp_path / "a.png", 1, *size)
    assert_done(pqdiff("reconstruct", original, "-o", tmp_path / "direct", "-m", f8, "--save-images"))
    codes = encoded(pqdiff, tmp_path / "codes", f8, original)
    result = pqdiff("decode", *codes, "-o", tmp_path / "decoded", "-m", f8, "--json")
    assert_done(result)
    files = [row["file"] for row in json.loads(result.out)["results"]]
    assert files == [str(tmp_path / "decoded" / "a.png")]
    assert np.array_equal(pixels_of(files[0]), pixels_of(tmp_path / "direct" / "a.tiny-f8.png"))


def test_decode_takes_a_moved_model_by_option(tmp_path, pqdiff, f8):
    moved = shutil.copytree(f8, tmp_path / "moved")
    codes = encoded(pqdiff, tmp_path / "codes", moved, save(tmp_path / "a.png", 1, 16, 24))
    shutil.rmtree(moved)
    assert_refused(pqdiff("decode", *codes, "-o", tmp_path / "out"), "--model", tmp_path / "out")
    assert_done(pqdiff("decode", *codes, "-o", tmp_path / "out", "-m", f8))
    assert files_in(tmp_path / "out") == ["a.png"]


def test_decode_refuses_codes_of_another_tokenizer(tmp_path, pqdiff, f8, f16):
    codes = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "a.png", 1, 16, 24))
    result = pqdiff("decode", *codes, "-o", tmp_path / "out", "-m", f16)
    assert_refused(result, codes[0], tmp_path / "out")
    assert f"tokens of {f8.name} " in result.err  # no folder of the machine that encoded
    assert str(f16) in result.err


def test_decode_does_not_overwrite_codes_of_the_same_name(tmp_path, pqdiff, f8):
    first = encoded(pqdiff, tmp_path / "x", f8, save(tmp_path / "a.png", 1, 8, 8))
    second = encoded(pqdiff, tmp_path / "y", f8, save(tmp_path / "a.png", 2, 8, 16))
    assert_done(pqdiff("decode", *first, *second, "-o", tmp_path / "out", "-m", f8))
    assert sorted(pixels_of(path).shape for path in (tmp_path / "out").iterdir()) == [(8, 8, 3), (8, 16, 3)]


@pytest.mark.parametrize("kind", BAD_CODES)
def test_bad_codes_are_refused_before_anything_is_written(tmp_path, pqdiff, f8, kind):
    (good,) = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "good.png", 1, 16, 24))
    bad = bad_codes(kind, tmp_path, good)
    assert_refused(pqdiff("decode", good, bad, "-o", tmp_path / "out", "-m", f8), bad, tmp_path / "out")


def test_codes_whose_codebooks_are_not_the_models_are_refused(tmp_path, pqdiff, f8):
    (good,) = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "good.png", 1, 16, 24))
    bad = tmp_path / "bad.pq.safetensors"
    with safe_open(good, framework="pt") as file:
        header = json.loads(file.metadata()["pqdiff"])
    header |= {"codebook_sizes": [512] * 3, "shape": [3, 2, 3]}  # consistent in itself
    packed = torch.zeros(-(-3 * 6 * 9 // 8), dtype=torch.uint8)
    save_file({"codes": packed}, bad, metadata={"pqdiff": json.dumps(header)})
    assert_refused(pqdiff("decode", good, bad, "-o", tmp_path / "out", "-m", f8), bad, tmp_path / "out")


@pytest.mark.parametrize("name", ["stranger/model", "/etc", "model", "tiny-quick", "", "a\x1b[2Jb"])
def test_codes_do_not_choose_which_model_is_loaded(tmp_path, pqdiff, f8, monkeypatch, name):
    model = AutoencoderPQ.from_pretrained(f8)
    codes = ImageCodes(torch.zeros(64, 1, 1, dtype=torch.int64), (512,) * 64, 8, 8, name, fingerprint(model))
    save_codes(codes, tmp_path / "evil.pq.safetensors")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    with serve_hub({}) as hub:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.address)
        result = pqdiff("decode", tmp_path / "evil.pq.safetensors", "-o", tmp_path / "out")
        assert hub.requests == []
    assert_refused(result, "give it as --model", tmp_path / "out")
    assert_done(pqdiff("decode", tmp_path / "evil.pq.safetensors", "-o", tmp_path / "out", "-m", f8))


def test_codes_of_a_shipped_model_are_decoded_by_it(tmp_path, pqdiff):
    codes = encoded(pqdiff, tmp_path / "codes", BUNDLED[-2], save(tmp_path / "a.png", 1, 16, 24))
    assert_done(pqdiff("decode", *codes, "-o", tmp_path / "out"))


def test_codes_of_a_stranger_are_compared_with_the_model_before_they_are_unpacked(tmp_path, pqdiff, f8):
    (path,) = encoded(pqdiff, tmp_path / "codes", f8, save(tmp_path / "a.png", 1, 8, 8))
    codes = load_codes(path)
    codes.indices, codes.codebook_sizes = torch.zeros(1, 2048, 2048, dtype=torch.int64), (2,)
    save_codes(codes, path)
    tracemalloc.start()
    try:
        assert_refused(pqdiff("decode", path, "-o", tmp_path / "out", "-m", f8), path, tmp_path / "out")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2**25  # the tokens alone take as much
