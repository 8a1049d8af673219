"""Titles of models."""

from pqdiff.cli.generated_images import titles_of


def test_titles_are_short():
    titles = titles_of(["tiny-hr", "runs/quick/pipeline", "user/model"])
    assert titles == {"tiny-hr": "HR", "runs/quick/pipeline": "pipeline", "user/model": "model"}


def test_models_with_equal_short_titles_keep_their_full_names():
    titles = titles_of(["a/pipeline", "b/pipeline", "tiny-base"])
    assert titles == {"a/pipeline": "a/pipeline", "b/pipeline": "b/pipeline", "tiny-base": "base"}
