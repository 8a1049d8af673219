"""Names of data sets and models as others should see them."""

from os import PathLike
from pathlib import Path


def public_name(source: str | PathLike) -> str:
    """A Hub id as it is; of a path only the last part, because folders of this machine mean nothing to others."""
    return Path(source).name if Path(source).exists() else str(source)
