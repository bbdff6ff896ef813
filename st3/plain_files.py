"""The one reader of YAML, JSON and CSV files: plain data in bounded time and memory, whatever a file holds."""

import csv
import errno
import fcntl
import io
import json
import os
import re
import stat
import zipfile
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
MOST_PARTS = 4_000_000
"""Lists, objects and quotation marks of a JSON file: less than a gigabyte of memory."""
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
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise DamagedError(f"cannot read {path}: it is no file") from error
        raise UserError(f"cannot read {path} ({error.strerror})") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise DamagedError(f"cannot read {path}: it is no file")
    with os.fdopen(descriptor, "rb") as file:
        yield file


def read_bytes(path: Path, largest: int) -> bytes:
    """All of a file. Raises as `opened`, and `DamagedError` for one of more than `largest` bytes, or that the disk
    does not give.
    """
    with opened(path) as file:
        try:
            content = file.read(largest + 1)
        except OSError as error:
            raise DamagedError(f"cannot read {path} ({error.strerror})") from error
    if len(content) > largest:
        raise DamagedError(f"cannot read {path}: it is larger than {largest:,} bytes")
    return content


def read_json(path: Path, largest: int = LARGEST_DATA) -> Any:
    """What a JSON file holds. Raises as `read_bytes`, and `DamagedError` for what is no JSON."""
    content = read_bytes(path, largest)
    if sum(map(content.count, (b"[", b"{", b'"'))) > MOST_PARTS:
        raise DamagedError(f"cannot read {path}: it has more than {MOST_PARTS:,} lists, objects and quotation marks")
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"cannot read {path}: {error}") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file, by its first line. Raises as `read_bytes`, and `DamagedError` for what is no CSV."""
    content = read_bytes(path, LARGEST_DATA)
    lines = max(content.count(b"\n"), content.count(b"\r"))
    if content.count(b",") + 4 * lines > MOST_CELLS:
        raise DamagedError(f"cannot read {path}: {lines:,} lines of that length are more than any file of st3 has")
    try:
        return list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    except (ValueError, csv.Error) as error:
        raise DamagedError(f"cannot read {path}: {error}") from error


def check_stored(file: BinaryIO) -> None:
    """Raises ValueError where a file is a zip archive with compressed parts, which may unpack to anything.

    torch.save packs none.
    """
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise ValueError("its parts are compressed, which torch.save does not do")
    file.seek(0)


@contextmanager
def alone_at(path: Path) -> Iterator[None]:
    """Wait for the lock of a file, which is made where there is none.

    It may be replaced by whoever has the lock, so whoever has waited must look whether it is still the one of that
    name. Raises OSError, and does not wait for a FIFO.
    """
    while True:
        with open(path, "ab", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK, 0o666)) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                yield
                return


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
