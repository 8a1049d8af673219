"""Folders of one machine have no place in what others load."""

import json
from pathlib import Path


def forget_local_paths(folder: str | Path) -> None:
    """Remove from the configurations below `folder` where on this machine their models were; Hub ids stay."""
    for path in Path(folder).rglob("*.json"):
        content = json.loads(path.read_text())
        source = content.get("_name_or_path") if isinstance(content, dict) else None
        if isinstance(source, str) and (not source or Path(source).is_absolute() or Path(source).exists()):
            del content["_name_or_path"]
            path.write_text(json.dumps(content, indent=2) + "\n")
