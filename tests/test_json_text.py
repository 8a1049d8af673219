"""One reader for JSON: whatever a file holds, the result is an object or one line that names the file."""

import os

import pytest

from pqdiff.json_text import parse_json, read_json

BAD = {
    "nested": (b'{"a":' * 100_000, "nested too deeply"),
    "list": (b"[]", "must hold a JSON object, holds a list"),
    "not UTF-8": (b'{"a": "\xff"}', "cannot be read"),
    "empty": (b"", "cannot be read"),
    "digits": (b'{"a": ' + b"9" * 10_000 + b"}", "cannot be read"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_object_is_one_line(kind, tmp_path):
    content, reason = BAD[kind]
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=reason) as error:
        read_json(tmp_path / "a.json", "a.json")
    assert str(error.value).startswith("a.json ")
    assert "\n" not in str(error.value)


def test_what_is_no_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")  # reading would never end
    for name, reason in (("pipe", "is not a file"), ("missing", "is missing")):
        with pytest.raises(ValueError, match=reason):
            read_json(tmp_path / name, name)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(2**27 + 1)
    with pytest.raises(ValueError, match="more than 134,217,728 bytes"):
        read_json(tmp_path / "large", "large")


def test_objects_are_read(tmp_path):
    (tmp_path / "a.json").write_text('{"a": [1, 2.5, null]}')
    assert read_json(tmp_path / "a.json", "a") == {"a": [1, 2.5, None]}
    assert parse_json("[1]") == [1]
