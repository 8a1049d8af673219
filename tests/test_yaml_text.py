"""Numbers in YAML are numbers, with or without a point."""

import pytest
import yaml

from pqdiff.yaml_text import parse_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [("8e-5", 8e-5), ("-1E3", -1e3), ("1.5e3", 1500.0), (".5e1", 5.0), ("20_000", 20000), ("1.0e-3", 1e-3)],
)
def test_numbers_are_numbers(text, value):
    found = parse_yaml(f"rate: {text}")["rate"]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["8e-5x", "e5", "f8-d128", "'8e-5'"])
def test_texts_stay_texts(text):
    assert parse_yaml(text) == text.strip("'")


def test_other_loaders_stay_as_they_are():
    assert yaml.safe_load("8e-5") == "8e-5"
