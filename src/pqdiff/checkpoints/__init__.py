"""Small trained models that ship with the package, found by name."""

import difflib
from collections.abc import Sequence
from pathlib import Path

_FOLDER = Path(__file__).parent

BUNDLED = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/config.json")))
# The best pictures at every rate: with classes of patches where such a tokenizer ships. Diffusion models should see the
# latents of the others.
FOR_PICTURES = tuple(
    f"{name}-adaptive" if f"{name}-adaptive" in BUNDLED else name for name in BUNDLED if not name.endswith("-adaptive")
)
BUNDLED_PIPELINES = tuple(sorted(path.parent.name for path in _FOLDER.glob("*/model_index.json")))


def bundled(name: str) -> str:
    """Folder of the shipped autoencoder or pipeline `name`, for `from_pretrained`.

    The pipelines' weights are stored in half precision: stock pipelines need `torch_dtype=torch.float32` on a CPU.

    Raises:
        ValueError: for a name that does not ship, with the nearest one that does.
    """
    names = (*BUNDLED, *BUNDLED_PIPELINES)
    if name not in names:
        raise ValueError(f"model ({name!r}) does not ship with pqdiff: {suggestion(name, names)}")
    return str(_FOLDER / name)


def suggestion(name: str, names: Sequence[str]) -> str:
    """The end of an error message: the nearest of `names`, or all of them."""
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.4)
    return f"did you mean {close[0]!r}?" if close else f"choose one of {', '.join(names)}"
