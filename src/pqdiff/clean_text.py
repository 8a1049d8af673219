"""Text of others in what pqdiff prints: names of files, errors of libraries, what a file says of itself."""

import os
import re

_PASSWORD = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_TOKEN = re.compile(r"(?<=Bearer )[^'\"]+|\bhf_[^\s'\"]+")
_VARIABLES = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")


def escaped(text: str) -> str:
    """The text with escapes such as `\\x1b` for all that is not printable: control characters, line breaks, and bytes of
    file names that are not UTF-8. A terminal would act on them, or could not show them."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # how Python holds such a byte
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def clean(text: object) -> str:
    """The escaped text, in which tokens and passwords have become ***."""
    text = str(text)
    for secret in filter(None, (os.environ.get(name, "").strip() for name in _VARIABLES)):
        text = text.replace(secret, "***")
    return escaped(_TOKEN.sub("***", _PASSWORD.sub("***", text)))


def one_line(text: object) -> str:
    """The clean text in one line, with single spaces."""
    return clean(" ".join(str(text).split()))
