"""YAML that may come from strangers: plain data, of bounded size. Every number is a number, every key comes once.

PyYAML follows YAML 1.1, where `8e-5`, without a point, is a text, and `2024-01-01` a date.
"""

import os
import re
import stat
from pathlib import Path
from typing import Any

import yaml

_LARGEST = 1 << 20  # bytes
_DEEPEST = 50  # levels
_PLAIN = (str, int, float, bool, type(None))


class _Loader(yaml.SafeLoader):
    _depth = 0

    def compose_node(self, parent, index):
        if self.check_event(yaml.AliasEvent):  # a few lines of them can stand for more data than any memory holds
            raise ValueError("aliases (*name) are not allowed: write the value out")
        if self._depth > _DEEPEST:
            raise ValueError(f"it is nested more than {_DEEPEST} levels deep")
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node, deep=False):
        mapping = super().construct_mapping(node, deep)
        if isinstance(node, yaml.MappingNode) and len(mapping) < len(node.value):
            raise ValueError(f"a key comes twice in line {node.start_mark.line + 1}, or in the lines below it")
        return mapping

    def construct_object(self, node, deep=False):
        value = super().construct_object(node, deep)
        if not isinstance(value, (dict, list, *_PLAIN)):
            raise ValueError(f"{node.tag} is not allowed: only mappings, lists, numbers and texts are")
        return value


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data):
        return True


for _kind in (_Loader, _Dumper):
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )


def read_yaml(path: str | Path) -> Any:
    """Value of a YAML file. See `parse_yaml`.

    Raises:
        ValueError: in one line that names the file, if it cannot be read, is not a file, or is not such YAML.
    """
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))  # a pipe would wait for a writer
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ValueError("it is not a file")
            return parse_yaml(file.read(_LARGEST + 1).decode())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ValueError(f"{path}: {reason}") from None


def parse_yaml(text: str) -> Any:
    """Value of a YAML document that holds plain data: mappings, lists, numbers, texts.

    Raises:
        ValueError: in one line, if the text is not YAML, is too large or too deep, or holds aliases, other types, or a key
            twice.
    """
    if len(text) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST:,} characters")
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(" ".join(str(error).split())[:400] or "it is not YAML") from None


def dump_yaml(value: Any, sort_keys: bool = False) -> str:
    """Text from which `parse_yaml` makes the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=sort_keys)
