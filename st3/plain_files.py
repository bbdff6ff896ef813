"""The one reader of YAML, JSON and CSV files: plain data in bounded time and memory, whatever a file holds."""

import csv
import io
import json
import os
import re
import stat
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from st3.errors import DamagedError, UserError, one_line

LARGEST = 2**20
"""Bytes of a YAML file. Those of runs and tables have some thousands."""
LARGEST_DATA = 10**8
"""Bytes of a JSON or CSV file; metrics.csv grows by about 100 with each row."""
MOST_CELLS = 10_000_000
"""Of a CSV file, in which a row counts as three more: 600,000 rows of metrics.csv, and a gigabyte of memory."""
DEEPEST = 32
"""Lists and mappings within each other."""
MOST = 100_000
"""Values, keys, lists and mappings of a YAML file."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """A file to read from, and nothing that could make the reader wait, or go on for ever.

    Raises:
        UserError: it is not there, or may not be read.
        DamagedError: it is a folder, a FIFO, a device.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK), "rb")
    except IsADirectoryError as error:
        raise DamagedError(f"cannot read {path}: it is no file") from error
    except OSError as error:
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    with file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise DamagedError(f"cannot read {path}: it is no file")
        yield file


def read_bytes(path: Path, largest: int) -> bytes:
    """All of a file. Raises as `opened`, and `DamagedError` for one of more than `largest` bytes."""
    with opened(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise DamagedError(f"cannot read {path}: it is larger than {largest:,} bytes")
    return content


def read_json(path: Path, largest: int = LARGEST_DATA) -> Any:
    """What a JSON file holds. Raises as `read_bytes`, and `DamagedError` for what is no JSON."""
    content = read_bytes(path, largest)
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"cannot read {path}: {error}") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by its first line. Raises as `read_bytes`, and `DamagedError` for what is no CSV."""
    content = read_bytes(path, LARGEST_DATA)
    rows, cells = list[dict[str, str]](), 0
    try:
        for row in csv.DictReader(io.StringIO(content.decode(), newline="")):
            rows.append(row)
            cells += 3 + len(row)  # a row takes memory, too
            if cells > MOST_CELLS:
                raise ValueError(f"it has more than {len(rows):,} rows of {len(row)}")
        return rows
    except (ValueError, csv.Error) as error:
        raise DamagedError(f"cannot read {path}: {error}") from error


def csv_text(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> str:
    """A CSV file with these columns. No text begins like a formula of a spreadsheet."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: no_formula(cell) if isinstance(cell, str) else cell for key, cell in row.items()})
    return file.getvalue()


def no_formula(text: str) -> str:
    """Text for a cell that a spreadsheet takes as text, whatever it begins with."""
    return f"'{text}" if re.match(r"'*[=+@-]", text) else text


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, of dict, list, str, int, float, bool and None; None for an empty one.

    Raises:
        UserError: the file is not there, or may not be read.
        DamagedError: it is no YAML, larger or deeper than any file of st3, or has what none of them needs: anchors and
            aliases (with which a short file stands for billions of values), tags, or the same key twice.
    """
    return parse_yaml(read_bytes(path, LARGEST), str(path))


def parse_yaml(content: bytes, name: str) -> Any:
    """The same for the bytes of the file `name`. Raises `DamagedError`."""
    try:
        text = content.decode()
        _check(text)
        return yaml.load(text, _Loader)  # which makes nothing but plain data
    except (yaml.YAMLError, ValueError) as error:
        reason = one_line(error).replace('in "<unicode string>", ', "")
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
