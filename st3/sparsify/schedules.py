"""Sparsity as a function of the optimizer step, and the settings that make one.

Step convention, used everywhere: the projection that follows the first optimizer step is step 0, so a
training of T optimizer steps asks for `value(0) … value(T - 1)`.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Protocol

from st3.durations import Duration, Length
from st3.errors import UserError
from st3.settings import Settings


class Schedule(Protocol):
    """Anything with a `value`; the frozen dataclasses below are the ones that st3 ships."""

    def value(self, step: int) -> float:
        """Sparsity in [0, 1) for the projection after optimizer step `step` (0-based)."""


@dataclass(frozen=True)
class Constant:
    """The same sparsity from the first step on."""

    sparsity: float

    def __post_init__(self) -> None:
        _check_sparsity(self.sparsity)

    def value(self, step: int) -> float:
        return self.sparsity


@dataclass(frozen=True, kw_only=True)
class PolynomialRamp:
    """`s(t) = initial + (final − initial)·(1 − (1 − x)^power)`, `x = (t − start)/(end − start)` clamped to [0, 1].

    `initial` up to and including step `start`, exactly `final` from step `end` on. `power=3` is the cubic ramp of
    Zhu & Gupta 2017 (arXiv:1710.01878) that ST-3 uses (arXiv:2212.01076).

    Raises `UserError` for a sparsity outside [0, 1), an end before the start, a power that is not positive, or a ramp
    that falls.
    """

    final: float
    start: int
    end: int
    power: float = 3.0
    initial: float = 0.0

    def __post_init__(self) -> None:
        _check_sparsity(self.final)
        if not 0 <= self.initial <= self.final:
            raise UserError(f"the ramp must rise from at least 0 to {self.final:g}, not start at {self.initial:g}")
        if not 0 <= self.start <= self.end:
            raise UserError(f"the ramp must start at or after step 0 and end later, not {self.start} → {self.end}")
        if not self.power > 0:
            raise UserError(f"the ramp's power must be positive, not {self.power:g}")

    def value(self, step: int) -> float:
        if step >= self.end:  # also the jump, when start == end
            return self.final
        if step <= self.start:
            return self.initial
        x = (step - self.start) / (self.end - self.start)
        return self.initial + (self.final - self.initial) * (1 - (1 - x) ** self.power)


@dataclass(frozen=True, kw_only=True)
class AlternatingPhases:
    """Dense until `start`, then `period` steps at `final` and as many dense in turn, dense from `last_dense` on, and
    at `final` for good from `end` on: the schedule of AC/DC (Peste et al. 2021, arXiv:2106.12379).

    Raises `UserError` for a sparsity outside [0, 1), a period below one step or bounds that do not follow each other.
    """

    final: float
    start: int
    period: int
    last_dense: int
    end: int

    def __post_init__(self) -> None:
        _check_sparsity(self.final)
        if self.period < 1:
            raise UserError("the phases must be at least one step long")
        if not 0 <= self.start <= self.last_dense <= self.end:
            raise UserError(f"the phases must follow each other, not {self.start}, {self.last_dense}, {self.end}")

    def value(self, step: int) -> float:
        if step >= self.end:
            return self.final
        if not self.start <= step < self.last_dense:
            return 0.0
        return 0.0 if (step - self.start) // self.period % 2 else self.final


def _check_sparsity(sparsity: float) -> None:
    if not 0 <= sparsity < 1:
        raise UserError(f"sparsity must lie in [0, 1), not {sparsity:g}")


# Settings -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ScheduleSettings(Settings):
    """What makes a schedule for a training of a certain length."""

    group: ClassVar[str] = "schedule"

    finetune: Duration = Duration(0)
    """Duration of the last part, in which masks are fixed and the sparse weights are trained as they are; 0: none."""

    def finetune_from(self, length: Length) -> int | None:
        """The first optimizer step of that last part. Raises `UserError` where nothing is left before it."""
        steps = self.moment("finetune", length)
        self.check(steps < length.steps, "finetune", "fills the whole training: lower it or raise epochs")
        return length.steps - steps if steps else None

    def over(self, final: float, length: Length) -> Schedule:
        """The schedule with the target `final`. Raises `UserError` where it does not fit into the training."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class RampSettings(ScheduleSettings):
    """Dense until start, then a polynomial ramp to the target at end (Zhu & Gupta 2017, arXiv:1710.01878)."""

    name: ClassVar[str] = "ramp"
    option: ClassVar[str] = "cubic"

    start: Duration = Duration(5, "%")
    """Duration of the first dense phase."""
    end: Duration = Duration(50, "%")
    """When the ramp reaches the target."""
    power: float = 3.0
    """3 is the cubic ramp, 1 a straight line."""
    initial: float = 0.0
    """Sparsity up to the start; above 0 a method is sparse from its first step."""

    def validate(self) -> None:
        self.check(0 < self.power <= 1000, "power", "must be positive and at most 1000: 3 is the cubic ramp")
        self.check_below_one("initial")

    def over(self, final: float, length: Length) -> PolynomialRamp:
        start, end, total = self.steps("start", length), self.moment("end", length), length.steps
        if end < start:
            raise UserError(
                f"schedule.end={self.end} (step {end}) comes before schedule.start={self.start} (step {start})"
            )
        # The last projection is step total − 1: a ramp that ends with the training ends there.
        end = min(end, total - 1)
        if self.initial > final > 0:
            raise UserError(f"schedule.initial={self.initial:g} is above sparsity={final:g}: the ramp must rise")
        initial = min(self.initial, final)
        return PolynomialRamp(final=final, start=min(start, end), end=end, power=self.power, initial=initial)


@dataclass(frozen=True, kw_only=True)
class ConstantSettings(ScheduleSettings):
    """The target sparsity from the first step on."""

    name: ClassVar[str] = "constant"

    def over(self, final: float, length: Length) -> Constant:
        return Constant(final)


@dataclass(frozen=True, kw_only=True)
class AlternatingSettings(ScheduleSettings):
    """Dense, then sparse and dense in turn, a longer dense phase, sparse: AC/DC's phases (arXiv:2106.12379)."""

    name: ClassVar[str] = "alternating"
    option: ClassVar[str] = "acdc"

    start: Duration = Duration(10, "%")
    """Duration of the first dense phase."""
    period: Duration = Duration(5, "%")
    """Duration of a sparse phase, and of a dense one."""
    last_dense: Duration = Duration(75, "%")
    """When the last dense phase begins."""
    end: Duration = Duration(85, "%")
    """When the last sparse phase begins."""

    def over(self, final: float, length: Length) -> AlternatingPhases:
        steps = {key: self.moment(key, length) for key in ("start", "last_dense", "end")}
        steps["end"] = min(steps["end"], length.steps - 1)  # as for the ramp
        for before, after in pairwise(steps):
            self.check(
                steps[before] <= steps[after],
                after,
                f"(step {steps[after]}) comes before schedule.{before}={getattr(self, before)} (step {steps[before]})",
            )
        return AlternatingPhases(final=final, period=self.interval("period", length), **steps)


SCHEDULES: dict[str, type[ScheduleSettings]] = {
    each.name: each for each in (RampSettings, ConstantSettings, AlternatingSettings)
}
