"""Numbers in YAML are numbers, with or without a point."""

import os

import pytest
import yaml

from pqdiff.yaml_text import dump_yaml, parse_yaml, read_yaml


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


def test_dates_stay_texts():
    assert parse_yaml("name: 2024-01-01") == {"name": "2024-01-01"}


BOMB = "a0: &a0 [1, 2]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 40))
MERGES = "a0: &a0 {b: 1}\n" + "".join(f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (BOMB, "aliases"),
        (MERGES, "aliases"),
        ("&a [*a]", "aliases"),
        ("[" * 100_000, "nested more than 50 levels"),
        ("- " * 100_000, "nested more than 50 levels"),
        ("{a: " * 3000 + "1" + "}" * 3000, "nested more than 50 levels"),
        ("x" * (1 << 21), "more than 1,048,576 characters"),
        ("a: !!python/object/apply:os.system [echo]", "could not determine a constructor"),
        ("a: !!set {b, c}", "set is not allowed"),
        ("a: !!binary aGk=", "binary is not allowed"),
        ("a: !!timestamp 2001-12-14", "timestamp is not allowed"),
        ("a: !!timestamp 2001-99-99", "month"),
        ("a: !!timestamp x", ""),
        ("a: !!int x", "invalid literal"),
        ("a: !!int ''", ""),
        ("a: !!bool x", "x"),
        ("a: !!omap [b]", "omap"),
        ("{[1]: 2}", "unhashable"),
        ("? {a: 1}\n: 2", "unhashable"),
        ("seed: 1\nbatch_size: 2\nseed: 3", "a key comes twice"),
        ("a: {b: 1, b: 2}", "a key comes twice"),
        ("a: \x07", "special characters"),
        ("a: [", "expected"),
        ("a: 1\n---\na: 2", "expected a single document"),
        ("9" * 5000, "limit"),
    ],
)
def test_what_a_stranger_sends_is_refused_in_one_line(text, named):
    with pytest.raises(ValueError, match=r".") as error:
        parse_yaml(text)
    assert named in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) <= 400


@pytest.mark.parametrize("kind", ["pipe", "folder", "missing", "not utf-8", "/dev/zero", "too large"])
def test_what_is_no_file_of_text_is_refused_at_once(tmp_path, kind):
    path = tmp_path / kind
    makers = {"pipe": lambda: os.mkfifo(path), "folder": path.mkdir}
    makers |= {
        "not utf-8": lambda: path.write_bytes(b"a: \xff"),
        "too large": lambda: path.write_text("x" * (1 << 21)),
    }
    makers.get(kind, lambda: None)()
    with pytest.raises(ValueError, match=r".") as error:
        read_yaml("/dev/zero" if kind == "/dev/zero" else path)
    assert kind in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_written_is_read_back():
    shared = [1, 2.5e-5, "8e-5", "2024-01-01", None, True, "no", "\x07"]
    value = {"a": shared, "b": shared, "c": {"d": []}}
    assert parse_yaml(dump_yaml(value)) == value
