"""Learning-rate schedules: settings whose `factor` gives the fraction of the peak rate in each optimizer step.

The first `warmup` steps lead up to the peak, which the last of them has: along a line, in one_cycle half a cosine.
"""

import bisect
import math
from dataclasses import dataclass
from typing import ClassVar

from st3.durations import Duration, Length
from st3.errors import UserError
from st3.settings import Settings


@dataclass(frozen=True)
class LRSchedule:
    """A schedule for a training of a certain length."""

    settings: "LRSettings"
    length: Length

    def value(self, step: int) -> float:
        """Factor of the peak learning rate for optimizer step `step` (0-based)."""
        return self.settings.factor(step, self.length)


@dataclass(frozen=True, kw_only=True)
class LRSettings(Settings):
    """Base of the schedules."""

    group: ClassVar[str] = "lr_schedule"

    warmup: Duration = Duration(0)
    """Duration of a linear warm-up to the peak (one_cycle: until its peak)."""

    def over(self, length: Length) -> LRSchedule:
        """The schedule of a training. Raises `UserError` where it does not fit into it."""
        if self.warmup.steps(length) >= length.steps:
            raise UserError(
                f"lr_schedule.warmup={self.warmup} fills all {length.steps} steps: lower it or raise epochs"
            )
        return LRSchedule(self, length)

    def factor(self, step: int, length: Length) -> float:
        """Fraction of the peak rate in `step`."""
        warmup = self.warmup.steps(length)
        return (step + 1) / warmup if step < warmup else self.after(step, warmup, length)

    def after(self, step: int, warmup: int, length: Length) -> float:
        """The same for a step after the first `warmup` ones."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class ConstantSettings(LRSettings):
    """The peak rate after a linear warm-up."""

    name: ClassVar[str] = "constant"

    def after(self, step: int, warmup: int, length: Length) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class MultiStepSettings(LRSettings):
    """Multiplied by gamma at each milestone (He et al. 2015, arXiv:1512.03385)."""

    name: ClassVar[str] = "multistep"

    milestones: tuple[Duration, ...] = (Duration(50, "%"), Duration(75, "%"))
    """When the rate is multiplied by gamma."""
    gamma: float = 0.1
    """The factor."""

    def validate(self) -> None:
        self.check(0 <= self.gamma <= 10, "gamma", "lies outside [0, 10]")

    def over(self, length: Length) -> LRSchedule:
        steps = self.milestone_steps(length)
        if steps != sorted(steps) or (steps and steps[-1] > length.steps):
            raise UserError(
                f"lr_schedule.milestones={[*map(str, self.milestones)]} (steps {steps}) must not fall and lie within "
                f"the {length.steps} steps of training"
            )
        return super().over(length)

    def milestone_steps(self, length: Length) -> list[int]:
        """The milestones in optimizer steps."""
        return [milestone.steps(length) for milestone in self.milestones]

    def after(self, step: int, warmup: int, length: Length) -> float:
        return self.gamma ** bisect.bisect_right(self.milestone_steps(length), step)


@dataclass(frozen=True, kw_only=True)
class CosineSettings(LRSettings):
    """Linear warm-up, then half a cosine down to final × peak (arXiv:1608.03983), which stays from end on."""

    name: ClassVar[str] = "cosine"

    warmup: Duration = Duration(5, "%")
    end: Duration = Duration(100, "%")
    """When the rate has fallen."""
    final: float = 0.0
    """The rate from then on, as a fraction of the peak."""

    def validate(self) -> None:
        self.check_fraction("final")

    def over(self, length: Length) -> LRSchedule:
        schedule = super().over(length)
        if self.moment("end", length) <= self.warmup.steps(length):
            raise UserError(f"lr_schedule.end={self.end} must come after lr_schedule.warmup={self.warmup}")
        return schedule

    def after(self, step: int, warmup: int, length: Length) -> float:
        return _cosine(1.0, self.final, min((step - warmup) / (self.moment("end", length) - warmup), 1.0))


@dataclass(frozen=True, kw_only=True)
class OneCycleSettings(LRSettings):
    """Up from initial × peak during warmup, down to final × peak (Smith & Topin 2017, arXiv:1708.07120)."""

    name: ClassVar[str] = "one_cycle"

    warmup: Duration = Duration(30, "%")
    final: float = 1e-5
    """The rate at the end, as a fraction of the peak."""
    initial: float = 0.04
    """The rate at the start, as a fraction of the peak."""

    def validate(self) -> None:
        self.check_fraction("final")
        self.check_fraction("initial")

    def factor(self, step: int, length: Length) -> float:
        peak = max(self.warmup.steps(length) - 1, 0)
        if step < peak:
            return _cosine(self.initial, 1.0, step / peak)
        return _cosine(1.0, self.final, (step - peak) / max(length.steps - 1 - peak, 1))


def _cosine(start: float, end: float, x: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * x)) / 2


LR_SCHEDULES: dict[str, type[LRSettings]] = {
    each.name: each for each in (ConstantSettings, MultiStepSettings, CosineSettings, OneCycleSettings)
}
