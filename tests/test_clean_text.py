"""What pqdiff prints cannot steer a terminal, and shows no secret."""

import pytest

from pqdiff.clean_text import clean, one_line


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("a red cat, 図 é [bold]", "a red cat, 図 é [bold]"),
        ("a\x1b[2J\x07\x9b\r\n", r"a\x1b[2J\x07\x9b\r\n"),
        ("a\u202eb\udcff\u2028", r"a\u202eb\xff\u2028"),
    ],
)
def test_what_is_not_printable_is_escaped(text, cleaned):
    assert clean(text) == cleaned


def test_one_line_has_no_line_breaks():
    assert one_line(ValueError("a\n  b\t\x00c")) == r"a b \x00c"


@pytest.mark.parametrize(
    "text",
    [
        "Illegal header value b'Bearer hf_secretsecret\\xe9'",
        "Illegal header value b'Bearer secret secret'",
        "https://user:secret@host/api failed",
        "https://secret@host",
        "token hf_secretABC.",
        "the variable is my-secret-token",
    ],
)
def test_tokens_and_passwords_are_masked(text, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "my-secret-token\n")
    assert "secret" not in clean(text)
    assert "***" in clean(text)
