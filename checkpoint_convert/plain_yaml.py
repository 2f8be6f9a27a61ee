"""YAML files of other tools, read as plain data."""

import re
from pathlib import Path
from typing import Any

import yaml

from dpop_base.errors import UserError, first_line


class _PlainLoader(yaml.SafeLoader):
    """YAML in which whatever names a class of Python is the plain list or table that it is written as, or null."""


def _plain(loader: yaml.SafeLoader, _: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_mapping(node, deep=True) if isinstance(node, yaml.MappingNode) else None


_PlainLoader.add_multi_constructor("", _plain)
# OmegaConf writes 1e-05, which YAML 1.1 takes for a string.
_PlainLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+"), list("-+0123456789")
)


def read_section(path: Path, key: str) -> dict[str, Any]:
    """The table under a top-level key; empty where there is none. Raises UserError."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _PlainLoader)  # a SafeLoader
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as YAML ({first_line(error)}); copy it again") from None
    section = values.get(key) if isinstance(values, dict) else None
    return section if isinstance(section, dict) else {}
