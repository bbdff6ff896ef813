"""The one reader of YAML files: plain data in bounded time and memory, whatever the file holds."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from st3.errors import DamagedError, UserError

LARGEST = 2**20
"""Bytes of a file. Those of runs and tables have some thousands."""
DEEPEST = 32
"""Lists and mappings within each other."""
MOST = 100_000
"""Values, keys, lists and mappings of a file."""


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, of dict, list, str, int, float, bool and None; None for an empty one.

    Raises:
        UserError: the file is not there, or may not be read.
        DamagedError: it is no YAML, larger or deeper than any file of st3, or has what none of them needs: anchors and
            aliases (with which a short file stands for billions of values), tags, or the same key twice.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    return parse_yaml(content, str(path))


def parse_yaml(content: bytes, name: str) -> Any:
    """The same for the bytes of the file `name`. Raises `DamagedError`."""
    try:
        if len(content) > LARGEST:
            raise ValueError(f"it is larger than {LARGEST:,} bytes")
        text = content.decode()
        _check(text)
        return yaml.load(text, _Loader)  # which makes nothing but plain data
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split()).replace('in "<unicode string>", ', "")
        raise DamagedError(f"cannot read {name}: {reason}") from error


def _check(text: str) -> None:
    """Raises ValueError for what must not be built. Reads one piece after the other, and keeps none."""
    depth = count = 0
    for event in yaml.parse(text, _Loader):
        assert event.start_mark
        line = event.start_mark.line + 1
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"line {line}: anchors (&) and aliases (*) are not for files of st3")
        if getattr(event, "tag", None):
            raise ValueError(f"line {line}: tags (!) are not for files of st3")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"line {line}: more than {DEEPEST} lists and mappings within each other")
        count += isinstance(event, yaml.NodeEvent)
        if count > MOST:
            raise ValueError(f"line {line}: more than {MOST:,} values")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]  # the fast one, where it is
    """Numbers as OmegaConf reads them, which writes the files of runs: 1e-3 is one, 1:30 and 2020-01-01 are text."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's way)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        mapping = super().construct_mapping(node, deep=True)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), keys[0])
            raise ValueError(f"line {node.start_mark.line + 1}: {str(twice)[:60]} is there twice")
        return mapping


for _kind, _form, _first in (
    ("bool", "yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF", "yYnNtTfFoO"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?(?:0b[01_]+|0[0-7_]+|0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?[0-9][0-9_]*(?:\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[eE][-+]?[0-9]+)|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_form})$"), list(_first))
