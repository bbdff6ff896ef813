"""Any runs, from a sweep or not, as the rows of a table: found in folders, grouped by their settings, named by what
tells them apart."""

import json
import os
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from st3.config import Selection, settings_that_count
from st3.errors import UserError, one_line
from st3.report.formats import NOTHING
from st3.report.record import Outcome
from st3.report.results import Result, Results, Run
from st3.report.run_charts import run_charts
from st3.report.table import Row, Series, Table
from st3.sparsify import METHODS
from st3.training.run_directory import RunDirectory
from st3.variants import plain

DAMAGED = "Damaged, and not counted"


@dataclass(frozen=True)
class _Found:
    """A finished run, and the settings that decided what it computed."""

    run: Run
    settings: Mapping[str, Any]
    """Without the seed."""


def read_runs(paths: Sequence[Path]) -> Results:
    """The runs in these folders and in those below them. Runs of the same settings, whatever their seed, are one row.

    Raises `UserError` for a path in which no run has started. One that is damaged is a sentence in `left_out`.
    """
    found, unfinished, left_out, seen = [], [], [], dict[tuple[str, int], Path]()
    for path in run_paths(paths):
        directory = RunDirectory(path)
        try:
            if not (summary := directory.finished()):
                unfinished.append(str(path))
                continue
            settings = settings_that_count(directory.config() or {})
            run = Run(settings.pop("seed"), Outcome.of(directory, summary), summary.top1, directory)
            _ = run_charts(run)  # every file is read: what is damaged shows now
        except (UserError, KeyError, ValueError, TypeError, ArithmeticError) as error:
            reason = f"there is no {error}" if isinstance(error, KeyError) else one_line(error, 600)
            left_out.append(f"{DAMAGED}: {path}: {reason}.")
            continue
        first = seen.setdefault((_key(settings), run.seed), path)
        if first is path:
            found.append(_Found(run, settings))
        else:
            left_out.append(f"Seed {run.seed} a second time, and not counted: {path}, as {first}.")
    damaged = any(line.startswith(DAMAGED) for line in left_out)
    return replace(_results(_title(paths), found, unfinished, left_out), damaged=damaged)


def run_paths(paths: Sequence[Path]) -> list[Path]:
    """Folders in which a run has started: those given, and those in which they lie. Raises `UserError` for a path
    without any."""
    found: dict[Path, Path] = {}
    for path in paths:
        below = [Path(folder) for folder in _folders(path) if RunDirectory(Path(folder)).started()]
        if not below:
            what = "holds no run of st3-train" if path.is_dir() else "is no folder"
            raise UserError(f"{path} {what}: name run directories, or a folder that holds some")
        for folder in below:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def common_folder(paths: Sequence[Path]) -> Path:
    """The one folder itself, unless it is a run; else the one in which all of them lie."""
    if len(paths) == 1 and not RunDirectory(paths[0]).started():
        return paths[0]
    parents = [path.absolute().parent for path in paths]
    shared = next(
        folder for folder in (parents[0], *parents[0].parents) if all(p.is_relative_to(folder) for p in parents)
    )
    return Path(os.path.relpath(shared))


def _folders(path: Path) -> Iterable[str]:
    """`path` and what lies in it, in the order of names; not what is hidden, and not what lies in a run."""
    for folder, below, _ in os.walk(path):
        below[:] = [] if RunDirectory(Path(folder)).started() else sorted(n for n in below if not n.startswith("."))
        yield folder


def _results(title: str, found: Sequence[_Found], unfinished: Sequence[str], left_out: Sequence[str]) -> Results:
    groups: dict[str, list[_Found]] = {}
    for each in found:
        groups.setdefault(_key(each.settings), []).append(each)
    settings = [group[0].settings for group in groups.values()]
    naming, differing = _naming(settings), _differing(settings)
    usual = _usual(naming, settings)
    results = sorted(
        (
            Result(_row(each, naming, differing, usual), tuple(sorted((one.run for one in group), key=_seed)))
            for each, group in zip(settings, groups.values(), strict=True)
        ),
        key=lambda result: (result.row.method != "dense", result.row.label, result.row.sparsity),
    )
    series: dict[str, list[Row]] = {}
    for result in results:
        series.setdefault(result.row.label, []).append(result.row)
    notes = []
    if usual:
        said = ", ".join(f"{name}={_text(value)}" for name, value in usual.items())
        notes = [f"The names of rows leave out what more than half of the rows have: {said}."]
    if any(map(_is_methods, naming)):
        notes.append("The names of rows leave out the settings that a method was published with.")
    table = Table(
        name="runs",
        title=title,
        notes=tuple(notes),
        series=tuple(Series(label, None, tuple(rows)) for label, rows in series.items()),
    )
    return Results(table, tuple(results), (), tuple(unfinished), tuple(left_out))


def _seed(run: Run) -> int:
    return run.seed


def _row(
    settings: Mapping[str, Any], naming: Mapping[str, set[str]], differing: Sequence[str], usual: Mapping[str, Any]
) -> Row:
    said = [
        f"{name.removeprefix('method.')}={_text(settings[name])}"  # behind the method's name
        for name, companies in naming.items()
        if name in settings and _company(name, settings) in companies
        if not _goes_without_saying(name, settings, usual)
    ]
    return Row(
        label=" ".join([settings["method.name"], *said]),
        method=settings["method.name"],
        sparsity=settings["sparsity"],
        overrides=tuple(f"{name}={_text(settings[name])}" for name in differing if name in settings),
        published=None,
        settings=tuple((name, _text(settings[name]) if name in settings else NOTHING) for name in naming),
    )


def _differing(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Settings that are not the same in all rows, in the order of config.yaml."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if len({_key(row.get(name)) for row in rows}) > 1]


_SELECTION = {f"method.{each.name}" for each in fields(Selection)}


def _naming(rows: Sequence[Mapping[str, Any]]) -> dict[str, set[str]]:
    """Those of them that name a row besides method and sparsity → in which company they differ."""
    naming = {}
    for name in _differing(rows):
        values: dict[str, set[str]] = {}
        for row in rows:
            values.setdefault(_company(name, row), set()).add(_key(row.get(name)))
        several = {company for company, each in values.items() if len(each) > 1}
        if several and name not in ("method.name", "sparsity"):
            naming[name] = several
    return naming


def _company(name: str, row: Mapping[str, Any]) -> str:
    """The rows among which a setting tells this one apart: for one of a method, a data set, … those of the same method
    or data set; for one of the schedule, which a method brings along, those of the same method; else all."""
    group, _, key = name.rpartition(".")
    within = [] if not group or key == "name" or name in _SELECTION else [f"{group}.name"]
    within += ["method.name"] if group == "schedule" else []
    return _key([row.get(each) for each in within])


def _goes_without_saying(name: str, settings: Mapping[str, Any], usual: Mapping[str, Any]) -> bool:
    if _is_methods(name):
        return settings[name] == _published(name, settings)
    return name in usual and settings[name] == usual[name]


def _is_methods(name: str) -> bool:
    return name.startswith("method.") and name not in _SELECTION


def _published(name: str, settings: Mapping[str, Any]) -> Any:
    """The default of a setting of the method."""
    return plain(METHODS[settings["method.name"]]())[name.removeprefix("method.")]


def _usual(names: Collection[str], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The value that more than half of the rows have, of each of several settings that has one; not of the methods'."""
    usual = {}
    for name in (each for each in names if not _is_methods(each)) if len(names) > 1 else ():
        counts = Counter(_key(row[name]) for row in rows if name in row)
        value, count = counts.most_common(1)[0]
        if 2 * count > sum(counts.values()):
            usual[name] = json.loads(value)
    return usual


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _text(value: Any) -> str:
    """As it is typed."""
    return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else _key(value)


def _title(paths: Sequence[Path]) -> str:
    where = paths[0] if len(paths) == 1 else common_folder(paths)
    return f"Runs in {where if where.name else where.resolve().name}"
