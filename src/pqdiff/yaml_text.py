"""YAML in which every number is a number. PyYAML follows YAML 1.1, where `8e-5`, without a point, is a text."""

import re
from typing import Any

import yaml


class _Loader(yaml.SafeLoader):
    pass


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse_yaml(text: str) -> Any:
    """Value of a YAML document that holds plain data: mappings, lists, numbers, texts.

    Raises:
        yaml.YAMLError: if the text is not YAML.
    """
    return yaml.load(text, _Loader)
