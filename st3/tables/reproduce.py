"""Train the runs of a table of results, and write its report.

Each row and seed is one run of st3-train, in a process and a run directory of its own. The same command continues:
finished runs are not trained again, interrupted ones go on, broken ones are tried again. Several of these commands may
work at one table at the same time, also on machines that share the folder: a lock beside each run directory keeps them
apart. So start one command for each GPU, or let Slurm do so.

examples:
  st3 reproduce fashion_mnist_embedded                       needs no data and no GPU
  st3 reproduce cifar10_resnet20 --seeds 0..4 --jobs 2       five seeds a row, two runs at once
  st3 reproduce cifar10_resnet20 --rows 'dense*,*-90,*-95'   these first; others later, same report
  st3 reproduce cifar10_resnet20 epochs=5 --out short        an override for every row
  st3 reproduce resnet50_imagenet --dry-run                  every command and what it costs
  st3 reproduce cifar10_resnet20 --report-only               the report of the runs that are there
  st3 reproduce cifar10_resnet20 --report-only --write docs/results.md    and the table into a text of yours (below)
  st3 reproduce fashion_mnist_embedded --record results.csv  what is in this file is not trained again (below)
  for gpu in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$gpu st3 reproduce cifar10_resnet20 & done; wait
  sbatch --array=0-7 --gpus=1 --wrap "st3 reproduce cifar10_resnet20"

--write FILE replaces what stands in FILE, any Markdown, between these two lines, and nothing else:
  <!-- BEGIN st3 reproduce cifar10_resnet20 -->
  <!-- END st3 reproduce cifar10_resnet20 -->

--record FILE writes a line for each run into FILE, a CSV file to be committed, as soon as the run is finished. A run
that stands there with the settings of today counts as one whose folder is there: it is not trained, and the report
shows it. So machines without a common file system work at one table, and no run is lost with a machine.
"""

import argparse
import re
import shlex
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from st3.errors import DiskError, UserError
from st3.options import positive, positive_int
from st3.plain_files import alone_at

if TYPE_CHECKING:
    from collections.abc import Mapping

    from st3.config import Config
    from st3.report.table import Table
    from st3.tables.plan import Task
    from st3.tables.table_record import TableRecord

PUBLISHED = Path(__file__).parent / "published"
"""The tables that come with st3; `st3.report.table` says how one is written."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 reproduce`."""
    parser.add_argument("table", metavar="TABLE", help=f"{', '.join(_names())}, or a YAML file of your own")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="told to st3-train in every row: epochs=5")
    parser.add_argument(
        "--rows", type=_patterns, metavar="NAME,…", help="only some rows, by shell patterns: 'dense*,st-3*,*-90'"
    )
    parser.add_argument(
        "--seeds", type=_seeds, default=[0], metavar="0..4,7", help="each row has a run for each (default 0)"
    )
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="runs at once (default 1)")
    parser.add_argument("--out", metavar="DIR", help="where the runs are (default outputs/tables/TABLE)")
    parser.add_argument("--images-per-second", type=positive, metavar="R", help="a measured rate, to estimate hours")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table between its marks in FILE, too")
    parser.add_argument("--record", type=Path, metavar="FILE", help="runs that are finished, also on other machines")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print every command and what it costs")
    instead.add_argument("--report-only", action="store_true", help="write the report of the runs that are there")


def run(options: argparse.Namespace) -> int:
    """The exit code: 0, or 1 when a run is broken. Raises `UserError` and KeyboardInterrupt."""
    from st3.report.document import around_block
    from st3.sketch import Sketch
    from st3.sparsify import METHODS
    from st3.tables.plan import chosen, describe_cost, plan
    from st3.tables.workers import run_all, stoppable

    table = _find_table(options.table)
    out = Path(options.out or Path("outputs", "tables", table.name))
    if options.write:
        if options.dry_run:
            raise UserError("--dry-run writes nothing: leave out --write")
        around_block(options.write, table.name)  # what is wrong with it is said before hours of training
    if options.report_only:
        if options.overrides or options.rows:
            given = shlex.join(options.overrides) or "--rows"
            raise UserError(f"--report-only trains nothing and shows all: leave out {given}")
        _report(table, out, options, _record(table, options, {}))
        return 0
    comment = "# " if options.dry_run else ""
    if missing := list(dict.fromkeys(r.method for r in table.rows if r.method and r.method not in METHODS)):
        print(f"{comment}not among the methods of st3, published figures only: {', '.join(missing)}")
    rows = chosen([row for row in table.rows if row.method in METHODS], options.rows)
    tasks = plan(rows, options.overrides, options.seeds, out)
    known = {row.slug: t.sketch.config for row, t in zip(rows, tasks, strict=False) if isinstance(t.sketch, Sketch)}
    if record := _record(table, options, known):
        planned, tasks = len(tasks), record.missing(tasks)
        if done := planned - len(tasks):
            print(f"{comment}{done} of {planned} runs are in {options.record}, and are not trained again")
    cost = f"{len(tasks)} runs: {describe_cost(tasks, options.images_per_second)}"
    if options.dry_run:
        for task in tasks:
            wrong = isinstance(task.sketch, UserError)
            what = task.sketch if wrong else describe_cost([task], options.images_per_second)
            print(f"# {task.name}: {what}\n{task.command}")
        print(f"# {cost}")
        return 1 if any(isinstance(task.sketch, UserError) for task in tasks) else 0
    print(cost, flush=True)
    make_folder(out)
    with stoppable():
        outcome = run_all(tasks, options.jobs, lambda line: print(line, flush=True), partial(_keep, record))
        _report(table, out, options, record)
    for task, by in outcome.held:
        print(f"left: {task.name}, as {by}")
    for task, error in outcome.broken:
        print(f"broken: {task.name}: {error}" + (f" (see {task.log})" if task.log.exists() else ""))
    if outcome.broken:
        print(f"{len(outcome.broken)} of {len(tasks)} runs are broken; the same command tries them again")
    return 1 if outcome.broken else 0


def make_folder(out: Path) -> None:
    """Raises `DiskError` where it cannot be made."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"--out {out} cannot be created ({error.strerror}): choose another") from error


def _record(table: "Table", options: argparse.Namespace, known: "Mapping[str, Config]") -> "TableRecord | None":
    """What --record names, if anything. `known` is what rows (slugs) mean, where that has been found out already."""
    from st3.tables.table_record import TableRecord

    if not options.record:
        return None
    record = TableRecord(options.record, table, options.overrides, known)
    counted, others = record.lines()
    if others:
        print(
            f"{'# ' if options.dry_run else ''}{others} of {len(counted) + others} lines of {options.record} are of "
            "other settings than the table has now: left out, until runs of their rows and seeds replace them"
        )
    return record


def _keep(record: "TableRecord | None", task: "Task") -> None:
    """Whatever is wrong with the record may not end the trainings that go on: the report will end with it."""
    if record:
        try:
            record.add(task)
        except UserError as error:
            print(f"{task.name} is not on record yet: {error}", flush=True)


def _report(table: "Table", out: Path, options: argparse.Namespace, record: "TableRecord | None") -> None:
    from st3.report.document import write_block
    from st3.report.formats import to_block
    from st3.report.table_report import write_report
    from st3.whole_files import cannot_write

    if record:
        make_folder(out)
    if not out.is_dir():
        raise UserError(f"{out} does not exist: say with --out where the runs are")
    lock = out / ".report.lock"
    with ExitStack() as alone:
        try:
            alone.enter_context(alone_at(lock))
        except OSError as error:
            raise cannot_write(lock, error) from error
        page, results = write_report(table, out, record.lines()[0] if record else ())
        others = record.add_all((result.row, run) for result in results.rows for run in result.runs) if record else 0
        if options.write:
            write_block(options.write, table.name, to_block(results, options.table))
    print(f"{len(results.runs)} runs in {len(results.measured)} of {len(table.rows)} rows; report: {page}", flush=True)
    if others:
        print(f"{others} runs in {out} have other settings than the table, and are not put into {options.record}")
    if options.write:
        print(f"table written into {options.write}", flush=True)


def _find_table(name: str) -> "Table":
    from st3.report.table import load_table
    from st3.variants import unknown_choice

    path = Path(name)
    if path.suffix != ".yaml":
        if name not in _names():
            raise UserError(unknown_choice("TABLE", name, _names()))
        path = PUBLISHED / f"{name}.yaml"
    return load_table(path)


def _names() -> list[str]:
    return sorted(file.stem for file in PUBLISHED.glob("*.yaml"))


# Types of options -----------------------------------------------------------------------------------------------------


def _patterns(text: str) -> list[str]:
    return text.split(",")


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        if not (ends := re.fullmatch(r"(\d+)(?:\.\.(\d+))?", part)):
            raise argparse.ArgumentTypeError(f"{text} must be numbers from 0 on, as in 0,1,2 or 0..4 or 0..2,7")
        span = range(int(ends[1]), int(ends[2] or ends[1]) + 1)
        if not span or set(span) & set(seeds):
            raise argparse.ArgumentTypeError(f"{text} must be different numbers, from the lower to the higher")
        seeds += span
    return seeds
