"""Removes folders of this machine from configurations that other people will load."""

import json
from pathlib import Path


def forget_local_paths(folder: str | Path) -> None:
    """Remove `_name_or_path` from the configurations below `folder` where it is a local path. Hub ids stay."""
    for path in Path(folder).rglob("*.json"):
        content = json.loads(path.read_text())
        source = content.get("_name_or_path") if isinstance(content, dict) else None
        if isinstance(source, str) and (not source or Path(source).is_absolute() or Path(source).exists()):
            del content["_name_or_path"]
            path.write_text(json.dumps(content, indent=2) + "\n")
