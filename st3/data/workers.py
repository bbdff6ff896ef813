"""Worker processes that read files, and what is said when one of them dies or stops."""

import atexit
import ctypes
import os
import signal
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import RawArray, active_children
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset

from st3.errors import DataError
from st3.settings import printable

T = TypeVar("T")

TICK = 1.0
"""Seconds between two looks at workers whose batch is awaited."""
PATIENCE = 45
"""Ticks that one file may take. A disk that is slow but there takes seconds for a file, however many a batch has; and
with the 5 s in which DataLoader notices that its workers are gone, a run ends within a minute."""

LEFT_TO_THE_MAIN_PROCESS = signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1
"""Ctrl-C, Slurm and containers send these to all processes of a run, but the main one needs batches until it ends."""

LONGEST_PATH = 4096


# What a worker is doing -----------------------------------------------------------------------------------------------


class Mark(ctypes.Structure):
    """One worker's notice to the main process, in memory that they share."""

    _fields_ = (("changes", ctypes.c_int64), ("path", ctypes.c_char * LONGEST_PATH))


_mark: Mark | None = None
"""In a worker, its own."""


@contextmanager
def reading(path: str) -> Iterator[None]:
    """A worker lets the main process know that it reads this file."""
    if _mark is None:
        yield
        return
    _mark.path = os.fsencode(path)[: LONGEST_PATH - 1]
    _mark.changes += 1
    try:
        yield
    finally:
        _mark.path = b""
        _mark.changes += 1


def _take_mark(marks: Any, worker: int) -> None:
    global _mark
    _mark = marks[worker]


# The batches ----------------------------------------------------------------------------------------------------------


class Batches:
    """The items `dataset[batch]` for each batch of `sampler`, in order; may be iterated again and again.

    Each worker prepares two batches ahead, DataLoader's default, which is enough. Workers end with the main process,
    but for no signal that is meant for it.

    Args:
        workers: processes that read; 0: this one does.
        persistent: whether they stay between two iterations; the second one ends the first.
        pin_memory: as DataLoader's.

    Raises:
        DataError: when iterated, a worker that died, or reads one file for longer than `PATIENCE`.
    """

    def __init__(
        self,
        dataset: Dataset,
        sampler: Sequence[Any],
        *,
        workers: int = 0,
        persistent: bool = False,
        pin_memory: bool = False,
    ):
        self.dataset = dataset
        self.marks: Any = RawArray(Mark, max(1, workers))
        # batch_size=None: the sampler yields whole batches. Without a generator each epoch would draw from the global
        # one.
        with warnings.catch_warnings():  # more workers than cores are no mistake: they wait for the disk, too
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            self.loader = DataLoader(
                dataset,
                sampler=sampler,
                batch_size=None,
                generator=torch.Generator(),
                num_workers=workers,
                persistent_workers=persistent and workers > 0,
                pin_memory=pin_memory,
                worker_init_fn=partial(_take_mark, self.marks),
            )

    def __iter__(self) -> Iterator[Any]:
        if not self.loader.num_workers:
            yield from self.loader
            return
        watch = _Watch(self.marks)
        watch.start()
        iterator: Any = self.loader._iterator
        try:
            iterator = watch.over_while(partial(self._begin, watch))
            while (batch := watch.over_while(partial(next, iterator, None))) is not None:
                yield batch
        except DataError:
            if iterator is not None:  # of no use any more; found by the garbage collector, parts would go first
                iterator._shutdown_workers()
            self.loader._iterator = None
            raise
        finally:
            watch.ended.set()

    def _begin(self, watch: "_Watch") -> Iterator[Any]:
        if self.loader._iterator is not None:
            watch.workers = self.loader._iterator._workers  # type: ignore[attr-defined]
            return iter(self.loader)
        with _deaf_from_birth():
            iterator = iter(self.loader)
        watch.workers = iterator._workers  # type: ignore[attr-defined]
        _started.update(watch.workers)
        atexit.unregister(_kill_the_rest)
        atexit.register(_kill_the_rest)  # anew, to be called before DataLoader waits for workers that may be stopped
        return iterator


_started: "weakref.WeakSet[BaseProcess]" = weakref.WeakSet()


def _kill_the_rest() -> None:
    """Python waits for its children when it exits, and ends them with a signal that these do not hear."""
    for child in active_children():
        if child in _started:
            child.kill()


@contextmanager
def _deaf_from_birth() -> Iterator[None]:
    """Processes that are started within never get `LEFT_TO_THE_MAIN_PROCESS`: they inherit what is blocked here.

    And this process learns of their death when it next waits for them: the handler that DataLoader installs would raise
    an exception wherever the main thread is, be it in the midst of an optimizer step.
    """
    before = signal.getsignal(signal.SIGCHLD)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_MAIN_PROCESS)
    try:
        yield
    finally:
        if before is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, before)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)


class _Watch(threading.Thread):
    """Kills the workers of a loader if one of them stands still while a batch is awaited: with that the waiting ends.

    It counts its own ticks and looks at no clock, so that a run that was stopped as a whole and goes on is not taken
    for one whose disk is gone.
    """

    def __init__(self, marks: Sequence[Mark]):
        super().__init__(daemon=True)
        self.marks = marks
        self.workers: Sequence[BaseProcess] = ()
        self.ended = threading.Event()
        self.batch, self.awaited = 0, False
        self.verdict = ""

    def over_while(self, action: Callable[[], T]) -> T:
        """What `action()` returns, which waits for the workers.

        Raises:
            DataError: they are no more.
        """
        self.batch, self.awaited = self.batch + 1, True
        try:
            return action()
        except Exception:
            if verdict := self.verdict or self.death():
                self.kill()
                for worker in self.workers:
                    worker.join(1)
                raise DataError(verdict) from None
            raise
        finally:
            self.awaited = False

    def run(self) -> None:
        """See the class."""
        batch, changes, still = 0, [0] * len(self.marks), [0] * len(self.marks)
        while not self.ended.wait(TICK):
            before, changes = changes, [mark.changes for mark in self.marks]
            if not self.awaited or not self.workers or self.batch != batch:
                batch, still = self.batch, [0] * len(self.marks)
                continue
            still = [ticks + 1 if old == new else 0 for ticks, old, new in zip(still, before, changes, strict=True)]
            late = [number for number, ticks in enumerate(still) if ticks >= PATIENCE]
            stuck = [number for number in late if self.marks[number].path]
            if stuck or len(late) == len(self.workers):
                self.verdict = self.delay(stuck)
                self.kill()
                return

    def kill(self) -> None:
        """End all workers, even those that are stopped."""
        for worker in self.workers:
            worker.kill()

    def delay(self, stuck: Sequence[int]) -> str:
        """What to say of workers that stand still."""
        for number in stuck:
            return (
                f"a data loader worker (process {self.workers[number].pid}) has been reading {self._file(number)} for "
                f"{PATIENCE * TICK:.0f} s: see whether its disk answers, and whether the process was stopped"
            )
        processes = ", ".join(str(worker.pid) for worker in self.workers)
        return (
            f"no data loader worker (processes {processes}) has done anything for {PATIENCE * TICK:.0f} s: see whether "
            "one was stopped"
        )

    def death(self) -> str:
        """What to say of the worker that has died, if any."""
        ending = wait([worker.sentinel for worker in self.workers], timeout=1)
        for number, worker in enumerate(self.workers):
            if worker.sentinel in ending:
                worker.join(1)  # it may still be dying
            if (code := worker.exitcode) is not None:
                how = f"ended by itself (exit code {code})" if code >= 0 else f"was killed ({_signal_name(-code)})"
                where = f" while it read {path}" if (path := self._file(number)) else ""
                why = {
                    -signal.SIGKILL: "often for lack of memory: lower dataset.workers, or the size of a batch",
                    -signal.SIGBUS: "often for lack of shared memory: enlarge /dev/shm, or lower dataset.workers",
                }.get(code, "set dataset.workers=0 to see where" if not where else "remove or replace the file")
                return f"a data loader worker (process {worker.pid}) {how}{where}: {why}"
        return ""

    def _file(self, number: int) -> str:
        return printable(os.fsdecode(self.marks[number].path))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"
