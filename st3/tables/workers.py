"""The processes that train a table's runs: they are started, watched and stopped, and never two are at one run."""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from st3.errors import UserError
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


# Locks ----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Held:
    """Somebody else works at a run."""

    by: str


class Lock:
    """A file beside a run directory that names the host and the process at work there.

    It is made with O_EXCL, so that only one process can make it. On the same host, flock tells whether its maker still
    works: the system keeps that lock until the last process that holds it ends. The training process holds it too, and
    so the run stays locked while it trains, even if the command that started it was killed. Nothing is known of the
    processes of another host: their files are left alone.
    """

    def __init__(self, path: Path, file: BinaryIO):
        self.path, self.file = path, file

    @classmethod
    def acquire(cls, path: Path) -> "Lock | Held":
        """The lock, or who has it. The file of a process of this host that has ended is taken over."""
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
            say_of(number, task, f"left to {result.by}")
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
                result = _result(job)
                job.lock.release()
                report(job.number, job.task, result, _duration(time.monotonic() - job.started))
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
    lock: Lock
    log_start: int
    """Where in the log its words begin."""
    started: float


def _begin(number: int, task: Task) -> "_Job | Summary | Held | str":
    """Start a run, unless it is finished, or somebody works at it, or something (the text) is wrong with it."""
    with suppress(UserError):  # what is wrong is asked again under the lock: somebody may be making the folder
        if summary := finished(task):
            return summary
    try:
        lock = Lock.acquire(task.lock)
        if isinstance(lock, Held):
            return lock
        try:
            if summary := finished(task):  # by another command, just before it gave the lock free
                lock.release()
                return summary
            return _start(number, task, lock)
        except BaseException:
            lock.release()
            raise
    except UserError as error:
        return str(error)


def _start(number: int, task: Task, lock: Lock) -> _Job:
    with open(task.log, "ab") as log:
        log.write(f"$ {task.command}\n".encode())
        log.flush()
        start = log.tell()  # before the process moves it
        process = subprocess.Popen(
            [*TRAIN, *task.overrides],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            pass_fds=[lock.file.fileno()],
            process_group=0,  # so that Ctrl-C reaches it once: through us
        )
        return _Job(number, task, process, lock, start, time.monotonic())


def _result(job: _Job) -> Summary | str:
    """Of a run that has ended: its summary, or why there is none."""
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
    for job in jobs:
        job.lock.release()
