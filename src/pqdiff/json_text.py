"""JSON from files that a stranger may have written."""

import json
from pathlib import Path
from typing import Any

_LARGEST = 2**27  # bytes: no configuration or vocabulary is near that


def parse_json(text: str | bytes) -> Any:
    """Value of a JSON document.

    Raises:
        ValueError: if the text is not JSON, or is nested too deeply.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path, name: str) -> dict:
    """The object that a JSON file holds.

    Raises:
        ValueError: in one line that calls the file `name`, if there is none.
    """
    try:
        if path.exists() and not path.is_file():
            raise ValueError("it is not a file")
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it has more than {_LARGEST:,} bytes")
        content = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{name} is missing") from None
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot be read ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{name} must hold a JSON object, holds a {type(content).__name__}")
    return content
