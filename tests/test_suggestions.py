"""The hint at the end of an error about an unknown name."""

import pytest

from pqdiff.suggestions import did_you_mean

MODELS = ("tiny-base", "tiny-hr", "tiny-precise", "tiny-quick")


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("tiny-presice", "tiny-precise"),
        ("precise", "tiny-precise"),
        ("Quick", "tiny-quick"),
        ("base", "tiny-base"),
        ("hr", "tiny-hr"),  # not similar by its letters, but a part of the name
        ("TINY-HR", "tiny-hr"),
    ],
)
def test_a_word_near_a_name_is_met_with_that_name(word, meant):
    assert did_you_mean(word, MODELS) == f"did you mean {meant!r}?"


def test_a_name_is_written_as_it_is_known():
    assert did_you_mean("autoencoderpq", ["UNet", "AutoencoderPQ"]) == "did you mean 'AutoencoderPQ'?"


def test_a_word_near_no_name_is_met_with_all_names_in_their_order():
    assert did_you_mean("xyz", MODELS[::-1]) == "choose one of tiny-quick, tiny-precise, tiny-hr, tiny-base"


@pytest.mark.parametrize("word", [3, None, ("a",)])
def test_a_key_of_a_file_that_is_no_text_is_met_with_all_names(word):
    assert did_you_mean(word, {"steps": 1, "resolution": 2}) == "choose one of steps, resolution"
