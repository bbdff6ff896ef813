"""What came out of the runs of a table: read from run directories, then mean and spread over the seeds."""

import csv
import json
import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import yaml

from st3.errors import UserError
from st3.report.table import Row, Table

TOLERANCE = 0.005
"""A row whose sparsity is further than this from its target is marked."""


@dataclass(frozen=True)
class Statistic:
    """A figure over the seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n − 1); None for one seed."""
    n: int


def statistic(values: Sequence[float]) -> Statistic | None:
    """Of at least one value; None for no value."""
    if not values:
        return None
    return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Run:
    """One run directory."""

    path: Path
    seed: int
    summary: dict
    """summary.json; of an unfinished run what its last checkpoint says, or nothing."""
    changes: tuple[str, ...]
    """Overrides that were typed beyond those of the table, and, with "not" before them, those that were not."""

    @property
    def finished(self) -> bool:
        return self.summary.get("finished", False)

    @cached_property
    def layers(self) -> list[dict[str, str]]:
        return _csv(self.path / "layers.csv")

    @cached_property
    def metrics(self) -> list[dict[str, str]]:
        return _csv(self.path / "metrics.csv")

    @cached_property
    def environment(self) -> dict:
        return yaml.safe_load((self.path / "environment.yaml").read_text(encoding="utf-8"))

    @property
    def removed(self) -> float:
        """The fraction that the run's target is about: of the weights, or of the pruned layers' MACs."""
        if self.summary["target"] == "weights":
            return self.summary["sparsity"]
        pruned = [layer for layer in self.layers if layer["pruned"] == "True"]
        return 1 - sum(int(layer["macs"]) for layer in pruned) / sum(int(layer["macs_dense"]) for layer in pruned)


@dataclass(frozen=True)
class Result:
    """A row with its finished runs, in the order of their seeds."""

    row: Row
    runs: tuple[Run, ...]

    def over_seeds(self, value: Callable[[Run], float]) -> Statistic | None:
        return statistic([value(run) for run in self.runs])

    @property
    def top1(self) -> Statistic | None:
        """Percent."""
        return self.over_seeds(lambda run: run.summary["top1"])

    @property
    def sparsity(self) -> Statistic | None:
        return self.over_seeds(lambda run: run.summary["sparsity"])

    @property
    def macs_millions(self) -> Statistic | None:
        return self.over_seeds(lambda run: run.summary["macs"] / 1e6)

    @property
    def difference(self) -> float | None:
        """Measured − published top-1, in points."""
        return self.top1.mean - self.row.published.top1 if self.runs and self.row.published else None

    @property
    def missed(self) -> bool:
        """Whether any of its runs is off the target by more than `TOLERANCE`."""
        slack = 1e-9  # half a point exactly is within, whatever binary fractions make of it
        return any(abs(run.removed - self.row.sparsity) > TOLERANCE + slack for run in self.runs)


@dataclass(frozen=True)
class Results:
    """Everything that the report of a table is made from."""

    table: Table
    rows: tuple[Result, ...]
    """Those with a run or a published figure."""
    empty: tuple[Row, ...]
    """Those with neither."""
    unfinished: tuple[Run, ...]

    @property
    def runs(self) -> list[Run]:
        return [run for result in self.rows for run in result.runs]

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.rows if result.runs]

    @property
    def any_missed(self) -> bool:
        return any(result.missed for result in self.rows)


def read_results(table: Table, folder: Path) -> Results:
    """From the run directories `folder`/SLUG-sSEED."""
    rows, empty, unfinished = [], [], []
    for row in table.rows:
        runs = _runs(row, folder)
        unfinished += [run for run in runs if not run.finished]
        done = tuple(run for run in runs if run.finished)
        if done or row.published:
            rows.append(Result(row, done))
        else:
            empty.append(row)
    return Results(table, tuple(rows), tuple(empty), tuple(unfinished))


def _runs(row: Row, folder: Path) -> list[Run]:
    runs = []
    for path in folder.glob(f"{row.slug}-s*"):
        seed = re.fullmatch(r"\d+", path.name.removeprefix(f"{row.slug}-s"))
        if seed and (path / "config.yaml").exists():
            runs.append(Run(path, int(seed[0]), _summary(path / "summary.json"), _changes(row, path)))
    return sorted(runs, key=lambda run: run.seed)


def _summary(path: Path) -> dict:
    if not path.exists():  # before the first checkpoint
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"cannot read {path}: remove the folder") from error


def _changes(row: Row, path: Path) -> tuple[str, ...]:
    file = path / "overrides.yaml"
    typed = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else []
    typed = [override for override in typed if override.partition("=")[0] not in ("seed", "run_dir")]
    more = [override for override in typed if override not in row.overrides]
    return (*more, *(f"not {override}" for override in row.overrides if override not in typed))


def _csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
