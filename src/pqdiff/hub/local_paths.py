"""Names of data sets and models as others should see them: folders of this machine mean nothing to them."""

import json
import re
from os import PathLike
from pathlib import Path

from pqdiff.hub.allow_list import VOCABULARIES
from pqdiff.json_text import parse_json

_HUB_ID = re.compile(r"(?!\.)[\w.-]+(/(?!\.)[\w.-]+)?")
# At least two folders deep: a special token of a vocabulary may begin with a slash.
_ABSOLUTE = re.compile(r"(~|\.\.?)[/\\].+|(file:/*|[A-Za-z]:|\\)?([/\\][^/\\]+){2,}[/\\]?")
_INSIDE = re.compile(r"(?<![\w:/\\.-])~?(/[\w.@+~-]+){2,}")  # within a sentence, and not of an address
_PATH_KEY = re.compile(r".*_(path|file|dir|folder)")  # `_name_or_path`, `tokenizer_file`, `cache_dir`


def public_name(source: str | PathLike) -> str:
    """A Hub id or the name of a shipped model as it is; of a path only the last part."""
    source = str(source)
    return re.split(r"[/\\]", source.rstrip("/\\"))[-1] if _is_local(source) else source


def without_local_paths(value):
    """A JSON value in which no text is a path of this machine.

    Entries such as `_name_or_path` are removed if they are paths, and other absolute paths become their last part, also as
    names of entries and within texts.
    """
    if isinstance(value, dict):
        public = {}
        for key, entry in value.items():
            if not (_PATH_KEY.fullmatch(str(key)) and isinstance(entry, str) and _is_local(entry)):
                name = without_local_paths(key)
                public[name if name not in public else f"{name} ({len(public) + 1})"] = without_local_paths(entry)
        return public
    if isinstance(value, list):
        return [without_local_paths(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return public_name(value) if _ABSOLUTE.fullmatch(value) else _INSIDE.sub(lambda path: public_name(path[0]), value)


def forget_local_paths(folder: str | Path) -> None:
    """Remove `_name_or_path` from the configurations below `folder` where it is a local path. Hub ids stay."""
    for path in Path(folder).rglob("*.json"):
        if path.name in VOCABULARIES:
            continue
        content = parse_json(path.read_bytes())
        public = without_local_paths(content)
        if public != content:
            path.write_text(json.dumps(public, indent=2) + "\n")


def _is_local(source: str) -> bool:
    return not _HUB_ID.fullmatch(source) or Path(source).exists()
