"""What came out of the runs of a table: read from run directories, then mean and spread over the seeds."""

import re
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from st3.report.table import Row, Table
from st3.training.run_directory import RunDirectory
from st3.training.summary import Summary

TOLERANCE = 0.005
"""A row whose sparsity is further than this from its target is marked."""


@dataclass(frozen=True)
class Statistic:
    """A figure over the seeds."""

    mean: float
    std: float | None
    """Sample standard deviation (n − 1); None for one seed."""
    n: int


def statistic(values: Sequence[float]) -> Statistic:
    """Of at least one value."""
    return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


@dataclass(frozen=True)
class Run:
    """A finished run."""

    directory: RunDirectory
    seed: int
    summary: Summary
    changes: tuple[str, ...]
    """Overrides that were typed beyond those of the table, and, with "not" before them, those that were not."""

    @cached_property
    def layers(self) -> list[dict[str, str]]:
        return self.directory.layers()

    @cached_property
    def metrics(self) -> list[dict[str, str]]:
        return self.directory.metrics()

    @cached_property
    def environment(self) -> dict[str, Any]:
        return self.directory.environment()

    @property
    def removed(self) -> float:
        """The fraction that the run's target is about: of the weights, or of the pruned layers' MACs."""
        if self.summary.target == "weights":
            return self.summary.sparsity
        pruned = [layer for layer in self.layers if layer["pruned"] == "True"]
        return 1 - sum(int(layer["macs"]) for layer in pruned) / sum(int(layer["macs_dense"]) for layer in pruned)


@dataclass(frozen=True)
class Result:
    """A row with its finished runs, in the order of their seeds. What is said over the seeds needs at least one."""

    row: Row
    runs: tuple[Run, ...]

    def over_seeds(self, value: Callable[[Run], float]) -> Statistic:
        return statistic([value(run) for run in self.runs])

    @property
    def top1(self) -> Statistic:
        """Percent."""
        return self.over_seeds(lambda run: run.summary.top1)

    @property
    def sparsity(self) -> Statistic:
        return self.over_seeds(lambda run: run.summary.sparsity)

    @property
    def macs_millions(self) -> Statistic:
        return self.over_seeds(lambda run: run.summary.macs / 1e6)

    @property
    def difference(self) -> float | None:
        """Measured − published top-1, in points, where there are both."""
        return self.top1.mean - self.row.published.top1 if self.runs and self.row.published else None

    @property
    def missed(self) -> bool:
        """Whether any of its runs is off the target by more than `TOLERANCE`."""
        slack = 1e-9  # half a point exactly is within, whatever binary fractions make of it
        return any(abs(run.removed - self.row.sparsity) > TOLERANCE + slack for run in self.runs)

    @property
    def warnings(self) -> list[str]:
        """What its runs say that a reader must know, each once."""
        return list(dict.fromkeys(warning for run in self.runs for warning in run.summary.warnings))


@dataclass(frozen=True)
class Results:
    """Everything that the report of a table is made from."""

    table: Table
    rows: tuple[Result, ...]
    """Those with a run or a published figure."""
    empty: tuple[Row, ...]
    """Those with neither."""
    unfinished: tuple[str, ...]
    """Names of run directories whose training has not ended."""

    @property
    def runs(self) -> list[Run]:
        return [run for result in self.rows for run in result.runs]

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.rows if result.runs]


def read_results(table: Table, folder: Path) -> Results:
    """From the run directories `folder`/SLUG-sSEED."""
    rows, empty, unfinished = [], [], []
    for row in table.rows:
        runs = []
        for seed, directory in _directories(row, folder):
            if summary := directory.finished():
                runs.append(Run(directory, seed, summary, _changes(row, directory)))
            else:
                unfinished.append(directory.path.name)
        if runs or row.published:
            rows.append(Result(row, tuple(runs)))
        else:
            empty.append(row)
    return Results(table, tuple(rows), tuple(empty), tuple(unfinished))


def _directories(row: Row, folder: Path) -> list[tuple[int, RunDirectory]]:
    """Those in which a run of the row has started, by seed."""
    found = []
    for path in folder.glob(f"{row.slug}-s*"):
        seed, directory = path.name.removeprefix(f"{row.slug}-s"), RunDirectory(path)
        if re.fullmatch(r"\d+", seed) and directory.config() is not None:
            found.append((int(seed), directory))
    return sorted(found, key=lambda each: each[0])


def _changes(row: Row, directory: RunDirectory) -> tuple[str, ...]:
    typed = [each for each in directory.overrides() if each.partition("=")[0] not in ("seed", "run_dir")]
    more = [override for override in typed if override not in row.overrides]
    return (*more, *(f"not {override}" for override in row.overrides if override not in typed))
