"""Several processes that train one network together, as `torchrun` starts them."""

import os
import re
import signal
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from st3.errors import LonelyError, UserError, of_code

T = TypeVar("T")
PATIENCE = 20
"""Seconds that a process has to save and end when torchrun, which has started it, is gone."""


@dataclass(frozen=True)
class Processes:
    """This process (0-based `rank`) among `world_size`, the `local_rank`-th of its machine."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run directory and speaks to the user."""
        return self.rank == 0

    def sum_(self, value: Tensor) -> Tensor:
        """Sum over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value)
        return value

    def max_(self, value: Tensor) -> Tensor:
        """Elementwise maximum over the processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(value, dist.ReduceOp.MAX)
        return value

    def mean_(self, values: Iterable[Tensor]) -> None:
        """Mean of each floating-point tensor over the processes, in place; other tensors are left as they are."""
        if self.world_size > 1:
            for value in values:
                if value.is_floating_point():
                    self.sum_(value).div_(self.world_size)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank, in all of them; they travel pickled."""
        values = [value] * self.world_size
        if self.world_size > 1:
            dist.all_gather_object(values, value)
        return values

    def from_main(self, action: Callable[[], T]) -> T:
        """What `action` returns in the main process, in all of them; a `UserError` that it raises, too."""
        if self.world_size == 1:
            return action()
        outcome: list = [None, None]
        if self.is_main:
            try:
                outcome[0] = action()
            except UserError as error:
                outcome[1] = error.exit_code, str(error)
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise of_code(*outcome[1])
        return outcome[0]

    def on_main(self, action: Callable[[], T]) -> T | None:
        """What `action` returns in the main process, None in the others; a `UserError` that it raises, in all."""
        result: list[T] = []
        self.from_main(lambda: result.append(action()))
        return result[0] if result else None

    def together(self, action: Callable[[], T]) -> T:
        """What `action` returns here. A `UserError` that it raises in any process is raised in all."""
        if self.world_size == 1:
            return action()
        results: list[T] = []
        mistake: tuple[int, str] | None = None
        try:
            results.append(action())
        except UserError as error:
            mistake = error.exit_code, str(error)
        mistakes = self.gather(mistake)
        for rank, each in enumerate(mistakes):
            if each:
                code, message = each
                raise of_code(code, message if all(mistakes) else f"process {rank}: {message}")
        return results[0]

    def in_turn(self, action: Callable[[], T]) -> T:
        """`together`, first in one process of each machine, so that the others find the files that it has made."""
        early = self.together(lambda: [action()] if self.local_rank == 0 else [])
        return self.together(lambda: early[0] if early else action())

    def alone(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; a `UserError` in making them (a damaged file) is this process's own."""
        with self.lonely(UserError):
            yield from batches

    @contextmanager
    def lonely(self, kind: type[UserError]) -> Iterator[None]:
        """Errors of this kind are this process's own: they become a `LonelyError` where there are others."""
        try:
            yield
        except kind as error:
            if self.world_size == 1:
                raise
            raise LonelyError(f"process {self.rank}: {error}", error.exit_code) from error

    def lost(self, error: RuntimeError) -> str:
        """Which of the other processes is lost, where that is what an operation of all has failed of; else nothing."""
        if self.world_size == 1 or not re.search("gloo|nccl|peer|socket|timed out|timeout", str(error), re.I):
            return ""
        here = socket.gethostname()
        for _ in range(20):  # a connection breaks a moment before its process is gone
            gone = [rank for rank, (host, pid) in enumerate(_PEERS) if host == here and not _is_alive(pid)]
            if gone:
                return f"process {gone[0]} of {self.world_size} has ended (number {_PEERS[gone[0]][1]} on {here})"
            time.sleep(0.1)
        if re.search("timed out|timeout", str(error), re.I):
            return "another process has not answered within ddp_timeout: it hangs, or its machine is gone"
        return "another process, on another machine, has ended"

    def wrap(self, model: nn.Module) -> nn.Module:
        """A module whose backward pass averages the gradients over the processes; the model itself stays as it is.

        BatchNorm sees the images of its own process. Its statistics are averaged when an epoch ends (`mean_`) instead
        of being sent in every step.
        """
        if self.world_size == 1:
            return model
        with warnings.catch_warnings():  # the new name of this option is not in the older versions that we support
            warnings.simplefilter("ignore", FutureWarning)
            return nn.parallel.DistributedDataParallel(model, broadcast_buffers=False)

    def gradients_wait(self, forward: nn.Module, wait: bool) -> AbstractContextManager:
        """Context for a forward and backward pass whose gradients are not yet averaged, where `wait`."""
        module = getattr(forward, "_orig_mod", forward)  # in what torch.compile made of it
        if wait and isinstance(module, nn.parallel.DistributedDataParallel):
            return module.no_sync()
        return nullcontext()


SINGLE = Processes()


def launched() -> Processes:
    """What `torchrun` says of this process; `SINGLE` without it. Nothing is set up yet.

    Raises `UserError` for environment variables that contradict each other.
    """
    names = "RANK", "LOCAL_RANK", "WORLD_SIZE"
    if not dist.is_available() or os.environ.get("WORLD_SIZE", "1") == "1":
        return SINGLE
    try:
        return Processes(*(int(os.environ[name]) for name in names))
    except (KeyError, ValueError) as error:
        found = " ".join(f"{name}={os.environ.get(name, '')}" for name in names)
        raise UserError(
            f"{found} cannot be understood: start several processes with torchrun --nproc-per-node=N -m st3.train …"
        ) from error


def join(processes: Processes, timeout: int) -> None:
    """Let the processes find each other, once; NCCL between GPUs, Gloo on CPUs.

    `timeout` is how many seconds one waits for the others: an evaluation or the decoding of a folder may be all that
    one does.
    """
    if processes.world_size > 1 and not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, timeout=timedelta(seconds=timeout))
        _PEERS[:] = processes.gather((socket.gethostname(), os.getpid()))
        if "TORCHELASTIC_RUN_ID" in os.environ:
            threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


_PEERS: list[tuple[str, int]] = []
"""Host and process number of each process, by rank."""


def _end_with(parent: int) -> None:
    """Ask this process to end when torchrun has ended: killed, it cannot do so itself."""
    while os.getppid() == parent:
        time.sleep(2)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(PATIENCE)
    os.kill(os.getpid(), signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    """Whether a process of this host still works; one whose end its parent has not seen yet does not."""
    try:
        return not re.search(r"^State:\s+[ZX]", Path(f"/proc/{pid}/status").read_text(), re.M)
    except OSError:
        return False


def leave() -> None:
    """Undo `join`."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()
