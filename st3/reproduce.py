"""Train what a table of st3/report/tables/ is made of, and write its report: `python -m st3.reproduce TABLE`.

Each row and seed is a run of st3-train in a process of its own and a run directory of its own. What is finished is not
run again, what was interrupted is continued, what has failed is tried again. Several of these commands may work at one
table, also on machines that share the folder: a lock beside each run directory says who is at it. So a machine with
several GPUs is used by starting one command for each:

    for gpu in 0 1 2 3; do CUDA_VISIBLE_DEVICES=$gpu python -m st3.reproduce cifar10_resnet20 & done; wait

and so is Slurm, where one command for each GPU is an array of jobs:

    sbatch --array=0-7 --gpus=1 --wrap "python -m st3.reproduce cifar10_resnet20"
"""

import argparse
import fcntl
import json
import math
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from st3.build import make_model, make_plan, read_facts
from st3.config import Config, load_config, unknown_choice
from st3.errors import UserError
from st3.measure import layer_macs
from st3.report.table import TABLES, Row, Table, load_table
from st3.report.table_report import write_report
from st3.sparsify import METHODS
from st3.train import config_path, in_one_line
from st3.training.run_directory import RunDirectory

TRAIN = (sys.executable, "-m", "st3.train")
"""The command that trains."""
PATIENCE = 60
"""Seconds that interrupted runs have to end by themselves."""


# What there is to do --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """One run: a row of the table with a seed."""

    row: Row
    seed: int
    overrides: tuple[str, ...]
    """All that st3-train is told."""
    run_dir: Path
    config: Config | None
    """None where the overrides do not make one; `error` says why."""
    error: str | None = None

    @property
    def name(self) -> str:
        return f"{self.row.name}, seed {self.seed}"

    @property
    def command(self) -> str:
        """As it can be typed."""
        return shlex.join(["python", "-m", "st3.train", *self.overrides])

    @property
    def log(self) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}.log")

    @property
    def lock(self) -> Path:
        return self.run_dir.with_name(f"{self.run_dir.name}.lock")


_OURS = {"seed": "--seeds", "run_dir": "--out", "dry_run": "--dry-run", "sparsity": "the points of the table"}
"""Settings that no override may touch, and what says them."""


def chosen(rows: Sequence[Row], patterns: Sequence[str] | None) -> list[Row]:
    """Those that one of the shell patterns matches, in the order of the table; None: all. Case does not matter.

    Raises `UserError` for a pattern that matches none.
    """
    if patterns is None:
        return list(rows)
    for pattern in patterns:
        if not any(fnmatchcase(row.slug, pattern.lower()) for row in rows):
            raise UserError(f"--rows {pattern} is none of {', '.join(row.slug for row in rows)}")
    return [row for row in rows if any(fnmatchcase(row.slug, pattern.lower()) for pattern in patterns)]


def plan(rows: Sequence[Row], extra: Sequence[str], seeds: Sequence[int], out: Path) -> list[Task]:
    """A task for each row and seed, seed by seed: a table with one seed is whole early.

    Raises `UserError` when no row can be run with the overrides `extra`.
    """
    for override in extra:
        name = override.partition("=")[0]
        if name in _OURS:
            raise UserError(f"{override}: write {_OURS[name]}")
    made = {}
    with initialize_config_dir(config_path(), version_base="1.3"):
        for row in rows:
            made[row] = _compose([*row.overrides, *extra])
    errors = [error for _, error in made.values()]
    if errors and all(errors):
        raise UserError(errors[0])
    tasks = []
    for seed in seeds:
        for row in rows:
            run_dir = out / f"{row.slug}-s{seed}"
            overrides = (*row.overrides, *extra, f"seed={seed}", f"run_dir={_quoted(run_dir)}")
            config, error = made[row]
            tasks.append(Task(row, seed, overrides, run_dir, config and replace(config, seed=seed), error))
    return tasks


def _compose(overrides: list[str]) -> tuple[Config | None, str | None]:
    """The configuration, or why there is none."""
    try:
        config = load_config(compose("config", overrides))
        make_plan(config, read_facts(config))
    except (HydraException, OmegaConfBaseException) as error:
        return None, in_one_line(error)
    except UserError as error:
        return None, str(error)
    return config, None


def _quoted(path: Path) -> str:
    """For Hydra's grammar of overrides, to which many letters mean something."""
    if re.fullmatch(r"[\w./-]+", str(path), re.ASCII):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def training_macs(config: Config, known: dict[str, int]) -> int:
    """What the training costs: MACs of the dense network × images × epochs × 3, one for the forward and two for the
    backward pass. `known` remembers the networks that have been counted."""
    facts, data = read_facts(config), config.dataset
    key = repr((config.model, data.channels, data.image_size, facts.classes))
    if key not in known:
        with torch.device("meta"):
            network = make_model(config, facts)
        known[key] = sum(layer_macs(network, (data.channels, data.image_size, data.image_size)).values())
    return 3 * known[key] * facts.train_images * config.epochs


def images(config: Config) -> int:
    """Training images that pass through the network."""
    return read_facts(config).train_images * config.epochs


def describe_cost(tasks: Sequence[Task], images_per_second: float | None, known: dict[str, int]) -> str:
    """In MACs, and in hours where a rate is given."""
    configs = [task.config for task in tasks if task.config]
    text = f"{_prefixed(sum(training_macs(config, known) for config in configs))}MACs"
    if images_per_second:
        text += f", {sum(map(images, configs)) / images_per_second / 3600:.3g} h at {images_per_second:g} images/s"
    return text


def _prefixed(number: int) -> str:
    """Three digits and an SI prefix: 27.5 tera."""
    prefixes = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta")
    rounded = float(f"{number:.2e}")
    power = min(int(math.log10(rounded)) // 3, len(prefixes) - 1) if rounded >= 1 else 0
    return f"{rounded / 1000**power:.3g} {prefixes[power]}"


# Who does it ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Somebody else is at a run."""

    by: str


class Lock:
    """A file that says who works at a run directory: made with O_EXCL, so that only one can make it.

    It names host and process. On one host the system's lock upon the file tells the living from the dead: it ends with
    its last holder, and the training process holds it too, so that it outlives a command that was killed without its
    training. Of another host nothing is known: its file is left alone.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file

    @classmethod
    def acquire(cls, path: Path) -> "Lock | Held":
        """The lock, or who has it."""
        me = {"host": socket.gethostname(), "pid": os.getpid()}
        try:
            file = os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644), "r+b", buffering=0)
        except FileExistsError:
            try:
                file = open(path, "r+b", buffering=0)  # noqa: SIM115 (held until release)
            except FileNotFoundError:  # released in this moment
                return cls.acquire(path)
            try:
                owner = json.loads(file.read())
                holder = f"process {owner['pid']} on {owner['host']}"
            except (ValueError, TypeError, KeyError):
                file.close()
                return Held(f"somebody whose {path} says nothing: delete it if nobody works there")
            if owner["host"] != me["host"]:
                file.close()
                return Held(f"{holder}: delete {path} if that is over")
        else:
            file.write(json.dumps(me).encode())
            holder = "another process on this machine"
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return Held(holder)
        if os.fstat(file.fileno()).st_nlink == 0:  # released between opening and locking
            file.close()
            return cls.acquire(path)
        file.seek(0)
        file.truncate()
        file.write(json.dumps(me).encode())
        return cls(path, file)

    def release(self) -> None:
        self.path.unlink()
        self.file.close()


@dataclass
class _Job:
    task: Task
    process: subprocess.Popen
    lock: Lock
    log_start: int
    """Where in the log its words begin."""
    started: float


@dataclass
class Outcome:
    """How the tasks ended."""

    broken: list[tuple[Task, str]] = field(default_factory=list)
    """With the error."""
    held: list[tuple[Task, str]] = field(default_factory=list)
    """With whoever is at it."""


def run_all(tasks: Sequence[Task], jobs: int, say: Callable[[str], None]) -> Outcome:
    """Do what is not done, `jobs` runs at once. An interruption stops them all, then goes on as KeyboardInterrupt."""
    waiting, running, outcome = deque(tasks), [], Outcome()
    numbers = {task.run_dir: f"[{number}/{len(tasks)}] {task.name}" for number, task in enumerate(tasks, start=1)}

    def ended(task: Task, error: str | None, words: str) -> None:
        if error:
            outcome.broken.append((task, error))
        say(f"{numbers[task.run_dir]}: {f'broken: {error}' if error else f'{words}{_figures(task)}'}")

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                done, error = state_of(task)
                lock = None
                if not done and not error:
                    lock = Lock.acquire(task.lock)
                    if isinstance(lock, Held):
                        outcome.held.append((task, lock.by))
                        say(f"{numbers[task.run_dir]}: left to {lock.by}")
                        continue
                    done, error = state_of(task)  # once more: it may have been finished before the lock was free
                if done or error:
                    if lock:
                        lock.release()
                    ended(task, error, "finished before: ")
                else:
                    running.append(_start(task, lock))
                    again = "continued" if (task.run_dir / "last.pt").exists() else "started"
                    say(f"{numbers[task.run_dir]}: {again}, see {task.log}")
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                error = _error(job)
                job.lock.release()
                ended(job.task, error, f"{_duration(time.monotonic() - job.started)}: ")
            if running:
                time.sleep(0.1)
    except BaseException:
        _stop(running)
        raise
    return outcome


def state_of(task: Task) -> tuple[bool, str | None]:
    """Whether it is done, and what speaks against doing it."""
    if task.error:
        return False, task.error
    directory = RunDirectory(task.run_dir)
    try:
        directory.check(asdict(task.config))
        return directory.finished() is not None, None
    except UserError as error:
        return False, str(error)
    except (ValueError, KeyError):
        return False, f"{task.run_dir / 'summary.json'} is damaged: delete it"


def _start(task: Task, lock: Lock) -> _Job:
    with open(task.log, "ab") as log:
        log.write(f"$ {task.command}\n".encode())
        process = subprocess.Popen(
            [*TRAIN, *task.overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.file.fileno()],
            process_group=0,  # Ctrl-C reaches it through us, once
        )
        return _Job(task, process, lock, log.tell(), time.monotonic())


def _error(job: _Job) -> str | None:
    """Why an ended run is not finished."""
    done, error = state_of(job.task)
    code = job.process.returncode
    if code == 0 and done:
        return None
    with open(job.task.log, "rb") as log:
        log.seek(job.log_start)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("st3-train: error: ") if lines else ""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (f" after: {said}" if said else "")
    return error or said or f"ended with code {code} and without a word"


def _figures(task: Task) -> str:
    summary = RunDirectory(task.run_dir).finished()
    return f"top-1 {summary['top1']:.2f} %, sparsity {summary['sparsity']:.2%}, {summary['macs'] / 1e6:,.2f} M MACs"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _stop(jobs: Sequence[_Job]) -> None:
    """Let them end by themselves; the next interruption, or the end of patience, ends them at once."""
    try:
        for job in jobs:
            job.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + PATIENCE
        for job in jobs:
            job.process.wait(max(0, deadline - time.monotonic()))
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        for job in jobs:
            if job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGKILL)
                job.process.wait()
    for job in jobs:
        job.lock.release()


@contextmanager
def stoppable() -> Iterator[None]:
    """What asks a process to end is an interruption, so that no run is left behind."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signals.append(signal.SIGHUP)
    before = {each: signal.signal(each, signal.default_int_handler) for each in signals}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


# The command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 when a run is broken, 2 for a mistake in what was typed, 130 when interrupted."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        with stoppable():
            return _reproduce(options)
    except UserError as error:
        print(f"reproduce: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", flush=True)
        return 130


def _reproduce(options: argparse.Namespace) -> int:
    table = _find_table(options.table)
    out = Path(options.out or Path("outputs", "tables", table.name))
    if options.report_only:
        if options.overrides or options.rows:
            given = shlex.join(options.overrides) or "--rows"
            raise UserError(f"--report-only trains nothing and shows all: leave out {given}")
        _report(table, out)
        return 0
    rows = chosen([row for row in table.rows if row.method in METHODS], options.rows)
    if missing := list(dict.fromkeys(r.method for r in table.rows if r.method and r.method not in METHODS)):
        comment = "# " if options.dry_run else ""
        print(f"{comment}not among the methods of st3, published figures only: {', '.join(missing)}")
    tasks = plan(rows, options.overrides, options.seeds, out)
    known: dict[str, int] = {}
    cost = f"{len(tasks)} runs: {describe_cost(tasks, options.images_per_second, known)}"
    if options.dry_run:
        for task in tasks:
            what = task.error or describe_cost([task], options.images_per_second, known)
            print(f"# {task.name}: {what}\n{task.command}")
        print(f"# {cost}")
        return 1 if any(task.error for task in tasks) else 0
    print(cost, flush=True)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be created ({error.strerror}): choose another") from error
    outcome = run_all(tasks, options.jobs, lambda line: print(line, flush=True))
    _report(table, out)
    for task, by in outcome.held:
        print(f"left: {task.name}, to {by}")
    for task, error in outcome.broken:
        print(f"broken: {task.name}: {error}" + (f" (see {task.log})" if task.log.exists() else ""))
    if outcome.broken:
        print(f"{len(outcome.broken)} of {len(tasks)} runs are broken; the same command tries them again")
    return 1 if outcome.broken else 0


def _report(table: Table, out: Path) -> None:
    if not out.is_dir():
        raise UserError(f"{out} does not exist: say with --out where the runs are")
    with open(out / ".report.lock", "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)  # one report at a time
        page, results = write_report(table, out)
    print(f"{len(results.runs)} runs in {len(results.measured)} of {len(table.rows)} rows; report: {page}", flush=True)


def _find_table(name: str) -> Table:
    path = Path(name)
    if path.suffix != ".yaml":
        names = sorted(file.stem for file in TABLES.glob("*.yaml"))
        if name not in names:
            raise UserError(unknown_choice("TABLE", name, names))
        path = TABLES / f"{name}.yaml"
    return load_table(path)


def _parser() -> argparse.ArgumentParser:
    tables = sorted(file.stem for file in TABLES.glob("*.yaml"))
    parser = argparse.ArgumentParser(
        prog="reproduce",
        description="Train what a table is made of, and write its report.",
        epilog=f"tables: {', '.join(tables)}, or a YAML file of your own",
    )
    parser.add_argument("table", metavar="TABLE")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="said to st3-train in every row: epochs=5")
    parser.add_argument(
        "--rows", type=_patterns, metavar="NAME,…", help="only some, by shell patterns: 'dense*,st-3*,*-90,*-95'"
    )
    parser.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,2", help="runs of each row (default 0)")
    parser.add_argument("--jobs", type=positive_int, default=1, metavar="N", help="runs at once (default 1)")
    parser.add_argument("--out", metavar="DIR", help="where the runs are (default outputs/tables/TABLE)")
    parser.add_argument("--images-per-second", type=positive, metavar="R", help="a measured rate, to estimate hours")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--dry-run", action="store_true", help="print every command and what it costs")
    instead.add_argument("--report-only", action="store_true", help="write the report from the runs that are there")
    return parser


def _patterns(text: str) -> list[str]:
    return text.split(",")


def _seeds(text: str) -> list[int]:
    seeds = [int(seed) for seed in text.split(",")]
    if min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError
    return seeds


def positive_int(text: str) -> int:
    if int(text) < 1:
        raise ValueError
    return int(text)


def positive(text: str) -> float:
    if not 0 < float(text) < float("inf"):
        raise ValueError
    return float(text)


if __name__ == "__main__":
    sys.exit(main())
