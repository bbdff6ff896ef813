"""The processes that train a table's runs: they are started, watched and stopped. Each locks the folder of its run, so
that never two are at one."""

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from st3.errors import InUseError, UserError
from st3.run import earlier_result
from st3.tables.plan import Task
from st3.training.run_directory import RunDirectory
from st3.training.summary import Summary

TRAIN = (sys.executable, "-m", "st3.train")
"""The command that trains."""
PATIENCE = 60
"""Seconds that interrupted runs have to end by themselves."""


def finished(task: Task) -> Summary | None:
    """The summary of a run that needs no more training.

    Raises `UserError` where the run cannot be made: its settings do not fit together, or its folder holds another run.
    """
    return earlier_result(RunDirectory(task.run_dir), task.checked())


@dataclass(frozen=True)
class Held:
    """Somebody else works at a run."""

    by: str


# Processes ------------------------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """The tasks that did not end in a finished run."""

    broken: list[tuple[Task, str]] = field(default_factory=list)
    """With the error."""
    held: list[tuple[Task, str]] = field(default_factory=list)
    """With the one who works at it."""


def run_all(
    tasks: Sequence[Task], jobs: int, say: Callable[[str], None], done: Callable[[Task], None] = lambda task: None
) -> Outcome:
    """Train what is not finished, `jobs` runs at once. `done` is called for each that is finished, or was before. An
    interruption stops them all and is raised again."""
    waiting, running, outcome = deque(enumerate(tasks, start=1)), list[_Job](), Outcome()

    def report(number: int, task: Task, result: Summary | Held | str, when: str) -> None:
        if isinstance(result, Summary):
            figures = f"top-1 {result.top1:.2f} %, sparsity {result.sparsity:.2%}, {result.macs / 1e6:,.2f} M MACs"
            say_of(number, task, f"{when}: {figures}")
            done(task)
        elif isinstance(result, Held):
            outcome.held.append((task, result.by))
            say_of(number, task, f"left, as {result.by}")
        else:
            outcome.broken.append((task, result))
            say_of(number, task, f"broken: {result}")

    def say_of(number: int, task: Task, words: str) -> None:
        say(f"[{number}/{len(tasks)}] {task.name}: {words}")

    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                number, task = waiting.popleft()
                again = "continued" if RunDirectory(task.run_dir).has_checkpoint() else "started"
                begun = _begin(number, task)
                if isinstance(begun, _Job):
                    running.append(begun)
                    say_of(number, task, f"{again}, see {task.log}")
                else:
                    report(number, task, begun, "finished before")
            for job in [job for job in running if job.process.poll() is not None]:
                running.remove(job)
                report(job.number, job.task, _result(job), _duration(time.monotonic() - job.started))
            if running:
                time.sleep(0.1)
    except BaseException:
        _stop(running)
        raise
    return outcome


@contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, kill and a closed terminal raise KeyboardInterrupt here, to stop the runs first. Says how to go on."""
    signals = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it, and so it stays
        signals.append(signal.SIGHUP)
    before = {each: signal.signal(each, signal.default_int_handler) for each in signals}
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", flush=True)
        raise
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@dataclass
class _Job:
    number: int
    task: Task
    process: subprocess.Popen[bytes]
    log_start: int
    """Where in the log its words begin."""
    started: float


def _begin(number: int, task: Task) -> "_Job | Summary | Held | str":
    """Start a run, unless it is finished, or somebody works at it, or something (the text) is wrong with it.

    Somebody else may begin in this moment, too: then one of the two processes ends, as the folder is locked.
    """
    with suppress(UserError):  # what is wrong is asked again where nobody works there: they may be making the folder
        if summary := finished(task):
            return summary
    try:
        if user := RunDirectory(task.run_dir).user():
            return Held(user)
        return finished(task) or _start(number, task)
    except UserError as error:
        return str(error)


def _start(number: int, task: Task) -> _Job:
    with open(task.log, "ab") as log:
        log.write(f"$ {task.command}\n".encode())
        log.flush()
        start = log.tell()  # before the process moves it
        process = subprocess.Popen(
            [*TRAIN, *task.overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # so that Ctrl-C reaches it once: through us
        )
        return _Job(number, task, process, start, time.monotonic())


def _result(job: _Job) -> Summary | Held | str:
    """Of a run that has ended: its summary, who is at work there, or why there is none."""
    wrong, summary = "", None
    try:
        summary = finished(job.task)
    except UserError as error:
        wrong = str(error)
    code = job.process.returncode
    if summary and (code == 0 or summary.constant_logits):
        return summary
    with open(job.task.log, "rb") as log:
        log.seek(job.log_start)
        lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("st3-train: error: ") if lines else ""
    if code == InUseError.exit_code:
        return Held(said)
    if code < 0:
        return f"ended by {signal.Signals(-code).name}" + (f" after: {said}" if said else "")
    return wrong or said or f"ended with code {code} and without a word"


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _stop(jobs: Sequence[_Job]) -> None:
    """Let them end by themselves. Another interruption, or the end of our patience, ends them at once."""
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
