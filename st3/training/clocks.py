"""How long the device waits for its data."""

import time
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch

T = TypeVar("T")


class DataClock:
    """Adds up the time between a request for a batch and its arrival, as the device sees it.

    On a GPU that is the gap between the work issued before and after the request, so that a loader which runs ahead
    of the device costs nothing; on a CPU it is the time that the request takes.
    """

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._seconds = 0.0
        self._gaps: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches."""
        batches = iter(batches)
        while True:
            begin = self._now()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._cuda:
                self._gaps.append((begin, self._now()))
            else:
                self._seconds += self._now() - begin
            yield batch

    def read(self) -> float:
        """Seconds since the last reading; on a GPU, to be called when its work is done."""
        seconds = self._seconds + sum(begin.elapsed_time(end) for begin, end in self._gaps) / 1e3
        self._seconds, self._gaps = 0.0, []
        return seconds

    def _now(self) -> Any:
        """Seconds, or an event on the GPU."""
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
