"""How long a run is and what changes when, in optimizer steps."""

from dataclasses import dataclass
from typing import Protocol

from st3.sparsify import Schedule


class LRSchedule(Protocol):
    """Anything in `st3.training.lr_schedules`."""

    def value(self, step: int) -> float:
        """Factor of the peak learning rate for optimizer step `step` (0-based)."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the loop needs to know in advance. Durations are optimizer steps."""

    epochs: int
    steps_per_epoch: int
    batch_size: int
    """Images per optimizer step, over all processes."""
    accumulate: int
    """Forward and backward passes per optimizer step."""
    lr: float
    """Peak learning rate."""
    lr_schedule: LRSchedule
    sparsity: Schedule
    target_sparsity: float
    """The highest value of `sparsity`; only evaluations that have it compete for the best network."""
    label_smoothing: float
    clip_norm: float | None
    seed: int
    eval_every: int
    """Epochs."""
    log_every: int

    @property
    def total_steps(self) -> int:
        return self.epochs * self.steps_per_epoch
