"""A record of finished runs: a CSV file with a line for each, which holds all that the report of a table needs of a run
whose folder is gone, or on another machine. It is meant to be committed: sorted, so that a new run is a new line."""

import csv
import io
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from st3.errors import DamagedError, DiskError, UserError, one_line
from st3.plain_files import alone_at, no_formula, read_bytes
from st3.training.run_directory import RunDirectory
from st3.training.summary import Summary
from st3.whole_files import write_text


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came out of a finished run, and what made it. Without a unit: as in `Summary`, or in environment.yaml."""

    top1: float
    """Percent, on the test images."""
    top5: float
    val_top1: float | None
    """On held-out training images, where there are some."""
    sparsity: float
    """zeros / prunable."""
    zeros: int
    prunable: int
    removed: float
    """The fraction that the run's target is about: of the weights, of the pruned layers' MACs or of modelled time."""
    macs: int
    macs_dense: int
    epochs: int
    steps: int
    seconds: float
    model: str
    dataset: str
    layers: int
    """That could be pruned."""
    dense_layers: tuple[str, ...]
    """Of these, the ones left dense."""
    changes: tuple[str, ...]
    """Overrides that were typed beyond those of the table, and, with "not" before them, those that were not."""
    warnings: tuple[str, ...]
    """What a reader must know before the numbers."""
    device: str | None
    cpu_threads: int | None
    """None where a GPU computed."""
    precision: str | None
    st3: str | None
    torch: str | None
    python: str | None
    git: str | None
    """Ten digits of the commit, and whether there were changes."""
    date: str | None

    @classmethod
    def of(cls, directory: RunDirectory, summary: Summary, changes: tuple[str, ...] = ()) -> "Outcome":
        """Of a finished run. Raises `UserError`, KeyError, ValueError or ArithmeticError where a file is damaged."""
        made, layers = directory.environment(), directory.layers()
        pruned = [layer for layer in layers if layer["pruned"] == "True"]
        removed = summary.sparsity
        if summary.target == "latency":
            assert summary.modelled_removed is not None
            removed = summary.modelled_removed
        elif summary.target == "flops":
            removed = 1 - sum(int(layer["macs"]) for layer in pruned) / sum(int(each["macs_dense"]) for each in pruned)
        git = made.get("git")
        as_they_are: dict[str, Any] = {name: getattr(summary, name) for name in _OF_SUMMARY}
        as_they_are |= {name: made.get(name) for name in _OF_ENVIRONMENT}
        return cls(
            **as_they_are,
            removed=removed,
            layers=len(layers),
            dense_layers=tuple(layer["name"] for layer in layers if layer["pruned"] != "True"),
            changes=changes,
            warnings=tuple(summary.warnings),
            cpu_threads=None if made.get("cuda") else made.get("cpu_threads"),
            git=f"{git['commit'][:10]}{' with changes' if git['changed_files'] else ''}" if git else None,
        )


_OF_SUMMARY = (
    "top1", "top5", "val_top1", "sparsity", "zeros", "prunable", "macs", "macs_dense", "epochs", "steps", "seconds",
    "model", "dataset",
)  # fmt: skip
_OF_ENVIRONMENT = ("device", "precision", "st3", "torch", "python", "date")


@dataclass(frozen=True)
class Line:
    """A run of a table's row, as a record has it."""

    row: str
    """Its `Row.slug`."""
    seed: int
    settings: str
    """See `st3.config.settings_digest`."""
    outcome: Outcome

    @property
    def key(self) -> tuple[str, int]:
        """A record has one line at most of each row and seed."""
        return self.row, self.seed


def read_record(path: Path) -> dict[tuple[str, int], Line]:
    """Its lines by their `key`; none where there is no file yet.

    Raises `DamagedError`, naming file and line, for one that is not as it was written, `UserError` for one that cannot
    be read or is larger than a record can be.
    """
    try:
        content = read_bytes(path, _LARGEST)
    except UserError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return {}
        raise UserError(f"--record: {error}: name a CSV file") from error
    line = 0
    try:
        if b"\0" in content:
            raise ValueError("it holds NUL bytes")
        reader = csv.reader(io.StringIO(content.decode(), newline=""), strict=True)
        try:
            return _lines(reader)
        finally:
            line = reader.line_num
    except (ValueError, csv.Error) as error:
        raise DamagedError(f"--record {path}, line {line}: {one_line(error)}: mend it by hand") from error


def add_to_record(path: Path, lines: Iterable[Line], rows: Sequence[str]) -> None:
    """Put lines into a record, in place of others of the same row and seed. Several processes may do so at once.

    `rows` are the slugs of the table in its order, which is that of the file. Raises `DamagedError` for a damaged file,
    `DiskError` for one that cannot be written.
    """
    new = {line.key: line for line in lines}
    if not new:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with alone_at(path):
            before = read_record(path)
            if (after := before | new) != before:
                write_text(path, _text(after, rows))
    except OSError as error:
        raise DiskError(f"--record {path} cannot be written ({error.strerror})") from error


# Cells ----------------------------------------------------------------------------------------------------------------


def _lines(rows: Iterator[list[str]]) -> dict[tuple[str, int], Line]:
    """Raises ValueError for what is not as `_text` writes it."""
    header, lines = next(rows, None), dict[tuple[str, int], Line]()
    if header is not None and header != list(_COLUMNS):  # it is empty for the moment between its making and its writing
        wrong = next((name for name in _COLUMNS if name not in header), None)
        raise ValueError(f"its columns lack {wrong}" if wrong else "its columns are not those of a record")
    for cells in rows:
        if len(cells) != len(_COLUMNS):
            raise ValueError(f"{len(cells)} cells, not {len(_COLUMNS)}")
        values = {name: _read(name, cell) for name, cell in zip(_COLUMNS, cells, strict=True)}
        of_line = {name: values.pop(name) for name in _OF_LINE}
        line = Line(**of_line, outcome=Outcome(**values))
        if line.key in lines:
            raise ValueError(f"{line.row}, seed {line.seed}, a second time")
        lines[line.key] = line
    return lines


def _text(lines: Mapping[tuple[str, int], Line], rows: Sequence[str]) -> str:
    """Sorted by row and seed; rows that the table does not have come last."""
    places = {row: place for place, row in enumerate(rows)}
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for line in sorted(lines.values(), key=lambda each: (places.get(each.row, len(places)), *each.key)):
        writer.writerow(_write(getattr(line if name in _OF_LINE else line.outcome, name)) for name in _COLUMNS)
    return file.getvalue()


def _write(value: Any) -> str:
    """A number as it is; words as a shell takes them; no text begins like a formula of a spreadsheet."""
    if value is None:
        return ""
    if isinstance(value, int | float):
        return repr(value)
    return no_formula(shlex.join(value) if isinstance(value, tuple) else value)


def _read(name: str, cell: str) -> Any:
    """What `_write` has written into a cell of this column."""
    kind = _COLUMNS[name]
    kinds = get_args(kind)
    if type(None) in kinds:
        if not cell:
            return None
        kind = kinds[0]
    if kind in _NUMBERS:
        try:
            value = _NUMBERS[kind](cell)
        except ValueError:
            raise ValueError(f"{name} is {cell[:40] or 'empty'}, which is no number") from None
        if not abs(value) <= (100 if name in _PERCENT else _MOST):
            raise ValueError(f"{name} is {cell[:40]}, which cannot be")
        return value
    text = cell[1:] if re.match(r"'+[=+@-]", cell) else cell
    if kind is str:
        return text
    try:
        return tuple(shlex.split(text))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError
    return value


_NUMBERS: dict[type, Callable[[str], int | float]] = {int: int, float: _finite}
_LARGEST = 2**25
"""Bytes of a record; a line has some hundred."""
_MOST = 1e18
"""Of any number: none of a run comes near it."""
_PERCENT = ("top1", "top5", "val_top1")
_OF_LINE = ("row", "seed", "settings")
_COLUMNS = {name: get_type_hints(Line)[name] for name in _OF_LINE} | get_type_hints(Outcome)
"""Name → type, in their order in the file."""
