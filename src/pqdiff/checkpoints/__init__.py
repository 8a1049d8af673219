"""Small trained models that ship with the package, found by name."""

import difflib
from pathlib import Path

_FOLDER = Path(__file__).parent

BUNDLED = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))


def bundled(name: str) -> str:
    """Folder of the shipped model `name`, for `from_pretrained`.

    Raises:
        ValueError: for a name that does not ship, with the nearest one that does.
    """
    if name not in BUNDLED:
        close = difflib.get_close_matches(name, BUNDLED, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(BUNDLED)}"
        raise ValueError(f"model ({name!r}) does not ship with pqdiff: {hint}")
    return str(_FOLDER / name)
