"""Stages are data, and mistakes in them are named."""

import pytest

from pqdiff.adaptation.stages import Stage, read_stages

STAGE = Stage(64, 10, 1e-3, "all")
GIVEN = {"resolution": 64, "steps": 10, "learning_rate": 1e-3, "trainable": "all"}


def test_stages_come_from_mappings():
    assert read_stages([GIVEN, GIVEN]) == (STAGE, STAGE)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (None, "must be a list"),
        ([], "at least one"),
        ({"steps": 3}, "must be a list"),
        ([GIVEN, 3], "stage 2: expected the keys resolution, steps"),
        ([{**GIVEN, "rate": 1}], "stage 1: key 'rate' is unknown"),
        ([{**GIVEN, "learning_rat": 1}], "did you mean 'learning_rate'"),
        ([{"steps": 3}], "stage 1: key 'resolution' is missing"),
        ([{**GIVEN, "steps": 0}], r"stage 1: steps \(0\) must be a positive integer"),
        ([{**GIVEN, "learning_rate": "fast"}], "learning_rate"),
        ([{**GIVEN, "trainable": "text"}], r"trainable \('text'\) must be one of projections, all, lora"),
    ],
)
def test_malformed_stages_are_named(values, named):
    with pytest.raises(ValueError, match=named):
        read_stages(values)
