"""`pqdiff encode`."""

import json

import pytest
import torch

from pqdiff import AutoencoderPQ
from pqdiff.data.cache.image_codes import load_codes
from pqdiff.data.images.reading import load_image, normalize, to_tensor
from pqdiff.losses.ssimulacra2 import SSIMULACRA2Loss
from pqdiff.models.fingerprint import fingerprint
from tests.cli.support import assert_done, assert_refused, save


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


def test_search_steps_give_other_tokens_at_the_same_rate_that_look_better(tmp_path, pqdiff, f8):
    original = save(tmp_path / "a.png", 1, 40, 56)
    found = {}
    for steps in (0, 12):
        folder = tmp_path / str(steps)
        result = pqdiff("encode", original, "-o", folder, "-m", f8, "--search-steps", steps, "--json")
        assert_done(result)
        (row,) = json.loads(result.out)["results"]
        assert row["bits_per_pixel"] == pytest.approx(9.0)
        codes = load_codes(row["file"])
        assert_done(pqdiff("decode", row["file"], "-o", folder, "-m", f8))
        decoded = normalize(to_tensor(load_image(folder / "a.png"))[None])
        image = normalize(to_tensor(load_image(original))[None])
        found[steps] = codes.indices, float(SSIMULACRA2Loss()(image, decoded))
    assert not torch.equal(found[0][0], found[12][0])
    assert found[12][1] < found[0][1]


def test_search_steps_refuse_what_cannot_be_searched_before_anything_is_written(tmp_path, pqdiff, f8):
    images = [save(tmp_path / "a.png", 1, 16, 16), save(tmp_path / "large.png", 1, 1449, 1449)]
    result = pqdiff("encode", *images, "-o", tmp_path / "out", "-m", f8, "--search-steps", 5)
    assert_refused(result, "takes images of at most 2,097,152 pixels; large.png has 1449 x 1449", tmp_path / "out")
    torch.manual_seed(0)
    config = {"quantizer_type": "residual", "quantizer_config": {"depth": 2, "codebook_size": 8}, "latent_channels": 4}
    AutoencoderPQ("patch", {"patch_size": 8}, **config).save_pretrained(tmp_path / "residual")
    result = pqdiff("encode", images[0], "-o", tmp_path / "out", "-m", tmp_path / "residual", "--search-steps", 5)
    assert_refused(result, "ResidualQuantizer has no tokens that can be chosen one by one", tmp_path / "out")
