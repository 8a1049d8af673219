"""Options of library code: small dataclasses whose fields have the names of command-line flags."""

import argparse
import dataclasses
from typing import Self


class Options:
    """Base class of frozen dataclasses that hold parsed flags. Each stands beside the function that adds the flags."""

    @classmethod
    def from_args(cls, args: argparse.Namespace) -> Self:
        """Options from the parsed flags of the same names; other flags are ignored."""
        return cls(**{field.name: getattr(args, field.name) for field in dataclasses.fields(cls)})
