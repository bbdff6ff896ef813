"""What came out of the runs of a table: read from run directories and a record, averaged over the seeds, and ranked."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from st3.errors import UserError
from st3.report.record import Line, Outcome
from st3.report.statistics import Statistic, paired_differences, statistic
from st3.report.table import Row, Table
from st3.training.run_directory import RunDirectory

TOLERANCE = 0.005
"""A row whose sparsity is further than this from its target is marked."""


@dataclass(frozen=True)
class Run:
    """A finished run."""

    seed: int
    outcome: Outcome
    top1: float
    """Percent, of the images that the table is about."""
    directory: RunDirectory | None
    """None where only a record knows of the run: then the lists below are empty."""

    @cached_property
    def layers(self) -> list[dict[str, str]]:
        return self.directory.layers() if self.directory else []

    @cached_property
    def metrics(self) -> list[dict[str, str]]:
        return self.directory.metrics() if self.directory else []

    @cached_property
    def evaluations(self) -> list[dict[str, Any]]:
        return self.directory.evaluations() if self.directory else []

    @cached_property
    def benchmark(self) -> dict[str, Any] | None:
        return self.directory.benchmark() if self.directory else None


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
        return self.over_seeds(lambda run: run.top1)

    @property
    def sparsity(self) -> Statistic:
        return self.over_seeds(lambda run: run.outcome.sparsity)

    @property
    def macs_millions(self) -> Statistic:
        return self.over_seeds(lambda run: run.outcome.macs / 1e6)

    @property
    def difference(self) -> float | None:
        """Measured − published top-1, in points, where there are both."""
        return self.top1.mean - self.row.published.top1 if self.runs and self.row.published else None

    @property
    def epochs(self) -> list[int]:
        """How long its runs are: one number, unless they should not be averaged."""
        return sorted({run.outcome.epochs for run in self.runs})

    @property
    def task(self) -> str:
        """What its runs learn, and which network does."""
        return f"{self.runs[0].outcome.model} on {self.runs[0].outcome.dataset}"

    def differences(self, other: "Result") -> list[float]:
        """Top-1 in points minus the other's, for each seed that both have."""
        mine, others = ({run.seed: run.top1 for run in each.runs} for each in (self, other))
        return paired_differences(mine, others)

    def minus(self, other: "Result") -> Statistic | None:
        """The mean of these differences, and their spread; None where the rows have no seed in common."""
        differences = self.differences(other)
        return statistic(differences) if differences else None

    @property
    def missed(self) -> bool:
        """Whether any of its runs is off the target by more than `TOLERANCE`."""
        slack = 1e-9  # half a point exactly is within, whatever binary fractions make of it
        return any(abs(run.outcome.removed - self.row.sparsity) > TOLERANCE + slack for run in self.runs)

    @property
    def warnings(self) -> list[str]:
        """What its runs say that a reader must know, each once."""
        return list(dict.fromkeys(warning for run in self.runs for warning in run.outcome.warnings))


@dataclass(frozen=True)
class Contest:
    """Rows that are ranked against each other, by their mean top-1."""

    sparsity: float
    epochs: int
    task: str
    rows: tuple[Result, ...]
    """The best first; it and each other one have two seeds or more in common."""

    @property
    def best(self) -> Result:
        return self.rows[0]

    @classmethod
    def of(cls, sparsity: float, epochs: int, task: str, rows: Sequence[Result]) -> "Contest | None":
        """None where fewer than two of the rows can be ranked: a single seed has no interval."""
        several = sorted((row for row in rows if len(row.runs) > 1), key=lambda row: row.top1.mean, reverse=True)
        ranked = tuple(row for row in several if (difference := row.minus(several[0])) and difference.n > 1)
        return cls(sparsity, epochs, task, ranked) if len(ranked) > 1 else None

    def minus_best(self, row: Result) -> Statistic:
        """The paired difference of one of the rows; 0 for the best."""
        difference = row.minus(self.best)
        assert difference
        return difference

    def inside_noise(self, row: Result) -> bool:
        """Whether it is not shown to be below the best: the interval of the difference does not end below 0."""
        difference = self.minus_best(row)
        assert difference.half_width is not None
        return difference.mean + difference.half_width >= 0


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
    left_out: tuple[str, ...] = ()
    """A sentence for each other run that was found and is not counted."""
    damaged: bool = False
    """Whether one of these is damaged."""

    @property
    def runs(self) -> list[Run]:
        return [run for result in self.rows for run in result.runs]

    @property
    def measured(self) -> list[Result]:
        return [result for result in self.rows if result.runs]

    @property
    def comparable(self) -> dict[tuple[float, int, str], list[Result]]:
        """The measured rows of each sparsity, number of epochs and task; without those that miss their sparsity, or
        whose runs differ in their epochs."""
        groups: dict[tuple[float, int, str], list[Result]] = {}
        for result in self.measured:
            if len(result.epochs) == 1 and not result.missed:
                groups.setdefault((result.row.sparsity, result.epochs[0], result.task), []).append(result)
        return groups

    @cached_property
    def contests(self) -> list[Contest]:
        """One at most for each sparsity, number of epochs and task."""
        found = (Contest.of(*budget, rows) for budget, rows in self.comparable.items())
        return [contest for contest in found if contest]

    def contest(self, result: Result) -> Contest | None:
        """The one in which a row is ranked."""
        return next((each for each in self.contests if result in each.rows), None)

    def inside_noise(self, result: Result) -> bool:
        """Whether a row is to be shown as the best at its sparsity, or as one that may be as good."""
        contest = self.contest(result)
        return contest is not None and contest.inside_noise(result)


def read_results(table: Table, folder: Path, recorded: Iterable[Line] = ()) -> Results:
    """From the run directories `folder`/SLUG-sSEED, and from the lines of a record for runs that have none there."""
    lines = list(recorded)
    rows, empty, unfinished = [], [], []
    for row in table.rows:
        runs = {line.seed: _of_line(table, line) for line in lines if line.row == row.slug}
        for seed, directory in _directories(row, folder):
            if run := finished_run(table, row, seed, directory):
                runs[seed] = run
            elif seed not in runs:
                unfinished.append(directory.path.name)
        if runs or row.published:
            rows.append(Result(row, tuple(runs[seed] for seed in sorted(runs))))
        else:
            empty.append(row)
    return Results(table, tuple(rows), tuple(empty), tuple(unfinished))


def finished_run(table: Table, row: Row, seed: int, directory: RunDirectory) -> Run | None:
    """What a run directory holds; None where the run is not finished. Raises `UserError` where it is damaged."""
    if not (summary := directory.finished()):
        return None
    outcome = Outcome.of(directory, summary, _changes(row, directory))
    return Run(seed, outcome, _top1(table, outcome, str(directory.path)), directory)


def _of_line(table: Table, line: Line) -> Run:
    return Run(line.seed, line.outcome, _top1(table, line.outcome, f"{line.row}, seed {line.seed}, on record"), None)


def _top1(table: Table, outcome: Outcome, what: str) -> float:
    if table.accuracy == "test":
        return outcome.top1
    if outcome.val_top1 is None:
        raise UserError(f"{what} holds no images out, by which this table ranks: set dataset.val_images")
    return outcome.val_top1


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
