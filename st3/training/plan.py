"""How long a run is and what changes when, in optimizer steps."""

from dataclasses import dataclass

from st3.durations import Length
from st3.optim import LRSchedule
from st3.sparsify import Schedule


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the loop needs to know in advance. Durations are optimizer steps."""

    length: Length
    classes: int
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
    finetune_from: int | None
    """The first step with fixed masks; None: never."""
    label_smoothing: float
    clip_norm: float
    """0: never."""
    seed: int
    eval_every: int
    """Epochs."""
    log_every: int

    @property
    def epochs(self) -> int:
        return self.length.epochs

    @property
    def steps_per_epoch(self) -> int:
        return self.length.steps_per_epoch

    @property
    def total_steps(self) -> int:
        return self.length.steps
