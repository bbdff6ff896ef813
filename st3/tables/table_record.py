"""The record of a table: which of its lines are runs that the table means today, and which runs become lines."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from st3.compose import compose_config
from st3.config import Config, refuse_other, settings_digest
from st3.errors import UserError
from st3.report.record import Line, add_to_record, read_record
from st3.report.results import Run, finished_run
from st3.report.table import Row, Table
from st3.tables.plan import Task
from st3.training.run_directory import RunDirectory


class TableRecord:
    """A record at `path` of the runs of `table` with the overrides `extra`. It is read again each time, as other
    processes add to it, and git may replace it. `known` saves the time to compose what rows (slugs) mean.

    Everything raises `UserError` for a damaged record.
    """

    def __init__(self, path: Path, table: Table, extra: Sequence[str], known: Mapping[str, Config]):
        self.path, self._table, self._extra = path, table, extra
        self._rows = {row.slug: row for row in table.rows if row.method}
        self._configs: dict[str, Config | None] = dict(known)

    def lines(self) -> tuple[list[Line], int]:
        """Those that count, and how many are of other settings than the table's of today, or of no row of it."""
        lines = list(read_record(self.path).values())
        counted = [line for line in lines if (config := self._config(line.row)) and _fits(line, config)]
        return counted, len(lines) - len(counted)

    def missing(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks that no line is the result of."""
        there = {line.key for line in self.lines()[0]}
        return [task for task in tasks if _key(task.run_dir) not in there]

    def add(self, task: Task) -> None:
        """The run of a finished task."""
        slug, seed = _key(task.run_dir)
        row = self._rows[slug]
        if run := finished_run(self._table, row, seed, RunDirectory(task.run_dir)):
            self.add_all([(row, run)])

    def add_all(self, runs: Iterable[tuple[Row, Run]]) -> int:
        """Those that have a folder and the settings of the table. Returns how many have others, and were left out."""
        lines, others = [], 0
        for row, run in runs:
            if run.directory:
                config = self._config(row.slug)
                if config and _holds(run.directory, replace(config, seed=run.seed)):
                    lines.append(Line(row.slug, run.seed, settings_digest(config), run.outcome))
                else:
                    others += 1
        add_to_record(self.path, lines, list(self._rows))
        return others

    def _config(self, slug: str) -> Config | None:
        """What a row means today; None for one that there is not, or that cannot be run."""
        if slug not in self._configs:
            try:
                row = self._rows[slug]
                self._configs[slug] = compose_config([*row.overrides, *self._extra])
            except (KeyError, UserError):
                self._configs[slug] = None
        return self._configs[slug]


def _fits(line: Line, config: Config) -> bool:
    return line.settings == settings_digest(config)


def _holds(directory: RunDirectory, config: Config) -> bool:
    """Whether the run there is of these settings, by the rules of continuing one."""
    try:
        return refuse_other(directory.config() or {}, config, directory.path).epochs == config.epochs
    except UserError:
        return False


def _key(folder: Path) -> tuple[str, int]:
    """Slug of the row and seed of SLUG-sSEED."""
    slug, _, seed = folder.name.rpartition("-s")
    return slug, int(seed)
