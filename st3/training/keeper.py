"""When the state of a run is saved within an epoch, and when a run ends because it is asked to."""

import math
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from st3.durations import Interval
from st3.training.distributed import Processes
from st3.training.recorder import Recorder
from st3.training.signals import Signals
from st3.training.state import TrainingState
from st3.training.step import not_finite

T = TypeVar("T")
AGREE_EVERY = 10
"""Optimizer steps after which several processes ask each other whether to save and end."""


class Keeper:
    """Told of each optimizer step; saves where it is time to, or where a signal asks the run to end.

    Several processes do so at the same step, which they agree on every `AGREE_EVERY` steps.
    """

    def __init__(self, processes: Processes, recorder: Recorder, signals: Signals, interval: Interval):
        self._processes, self._recorder, self._signals, self._interval = processes, recorder, signals, interval
        self._saved_at = time.monotonic()

    def after_step(self, state: TrainingState) -> None:
        """Raises `Interruption` where the run is to end; its state is saved then."""
        if self._processes.world_size > 1 and state.step % AGREE_EVERY:
            return
        wish = torch.tensor([self._is_time(state), self._signals.asked])  # in memory: the device is not waited for
        due, asked = self._processes.max_(wish).tolist()
        if due or asked:
            self.save(state)
        self._signals.asked = asked
        self._signals.obey()

    def watched(self, state: TrainingState, batches: Iterable[T]) -> Iterator[T]:
        """The batches of an evaluation, before which `state` is saved where the run is to end.

        Several processes have each their own number of batches, and end after the evaluation.
        """
        for batch in batches:
            if self._processes.world_size == 1 and self._signals.asked:
                self.save(state)
                self._signals.obey()
            yield batch

    def save(self, state: TrainingState) -> None:
        """All processes take part. Raises `NotFiniteError`: such a state is none to go on from."""
        total = self._processes.sum_(state.loss_sum.clone())  # which the loop does not read in each step on a GPU
        if not math.isfinite(total):
            raise not_finite(state, state.optimizer.param_groups[0]["lr"])
        state.count_seconds()
        self._recorder.checkpoint(state, state.state_dict(self._processes))
        self._saved_at = time.monotonic()

    def _is_time(self, state: TrainingState) -> bool:
        seconds, steps = self._interval.seconds, self._interval.steps
        if steps is not None:
            since = state.step % steps
            return since < (AGREE_EVERY if self._processes.world_size > 1 else 1)
        return seconds is not None and time.monotonic() - self._saved_at >= seconds
