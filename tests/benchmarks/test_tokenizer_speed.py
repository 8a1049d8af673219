"""Times of tokenizers: of the work that was meant, and the committed ones are as short as the issue asks."""

import json

import pytest
import torch

import pqdiff
from benchmarks import tokenizer_speed
from benchmarks.render_readme import RESULTS
from tests.tiny import tiny_autoencoder


def test_the_photo_has_detail_at_every_scale():
    """A flat one would spare tokenizers that look for the best class of a patch their work."""
    image = tokenizer_speed.photo(64)
    assert image.abs().max() <= 1
    assert torch.equal(image, tokenizer_speed.photo(64))
    for _ in range(4):
        assert (
            image - torch.nn.functional.avg_pool2d(image, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        ).std() > 0.02
        image = torch.nn.functional.avg_pool2d(image, 2)


def test_the_command_writes_what_it_measured(tmp_path, capsys):
    tiny_autoencoder().save_pretrained(tmp_path / "model")
    output = tmp_path / "speed.json"
    tokenizer_speed.main([str(tmp_path / "model"), "--side", "32", "--rounds", "2", "--output", str(output)])
    document = json.loads(output.read_text())
    (milliseconds,) = document["milliseconds"].values()
    assert milliseconds["both"]["median"] == pytest.approx(
        milliseconds["encode"]["median"] + milliseconds["decode"]["median"], rel=0.5
    )
    assert document["side"] == 32
    assert "encode" in capsys.readouterr().out


def test_committed_tokenizers_take_less_than_a_second_for_512_pixels():
    document = json.loads((RESULTS / "tokenizer_speed.json").read_text())
    assert (document["side"], document["threads"]) == (512, 1)
    assert document["milliseconds"].keys() == set(pqdiff.BUNDLED)
    for milliseconds in document["milliseconds"].values():
        assert milliseconds["both"]["median"] < 1000
