"""`pqdiff encode`."""

import json

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.data.cache.image_codes import load_codes
from pqdiff.data.images.reading import load_image, normalize, to_tensor
from pqdiff.models.fingerprint import fingerprint
from tests.cli.support import assert_done, save


def test_encode_packs_tokens_to_the_promised_rate(tmp_path, pqdiff, f8):
    original = save(tmp_path / "a.png", 1, 40, 56)
    result = pqdiff("encode", original, "-o", tmp_path / "out", "-m", f8, "--json")
    assert_done(result)
    (row,) = json.loads(result.out)["results"]
    assert row["bytes"] == 64 * 5 * 7 * 9 // 8
    assert row["bits_per_pixel"] == pytest.approx(9.0)
    codes = load_codes(row["file"])
    model = AutoencoderPQ.from_pretrained(f8).eval()
    with torch.no_grad():
        assert torch.equal(codes.indices, model.encode_to_indices(normalize(to_tensor(load_image(original))[None]))[0])
    assert (codes.height, codes.width, codes.fingerprint) == (40, 56, fingerprint(model))
    assert codes.model == f8.name  # no folder of this machine


def test_encode_and_decode_print_what_they_wrote(tmp_path, pqdiff, f8):
    images = [save(tmp_path / "a.png", 1, 16, 24), save(tmp_path / "b.png", 2, 8, 8)]
    result = pqdiff("encode", *images, "-o", tmp_path / "codes", "-m", f8)
    assert_done(result)
    assert str(64 * 2 * 3 * 9 // 8) in result.out
    codes = sorted((tmp_path / "codes").iterdir())
    result = pqdiff("decode", *codes, "-o", tmp_path / "out", "-m", f8)
    assert_done(result)
    assert result.out.splitlines() == ["Written:", *(f"  {tmp_path / 'out' / name}" for name in ("a.png", "b.png"))]
