"""Sparsity as a function of the optimizer step.

Step convention, used everywhere: the projection that follows the first optimizer step is step 0, so a
training of T optimizer steps asks for `value(0) … value(T - 1)`.
"""

from dataclasses import dataclass
from typing import Protocol

from st3.errors import UserError


class Schedule(Protocol):
    """Anything with a `value`; the frozen dataclasses below are the ones that st3 ships."""

    def value(self, step: int) -> float:
        """Sparsity in [0, 1) for the projection after optimizer step `step` (0-based)."""


@dataclass(frozen=True)
class Constant:
    """The same sparsity from the first step on."""

    sparsity: float

    def __post_init__(self):
        _check_sparsity(self.sparsity)

    def value(self, step: int) -> float:
        return self.sparsity


@dataclass(frozen=True, kw_only=True)
class PolynomialRamp:
    """`s(t) = final·(1 − (1 − x)^power)`, `x = (t − start)/(end − start)` clamped to [0, 1].

    0 up to and including step `start`, exactly `final` from step `end` on. `power=3` is the cubic ramp of
    Zhu & Gupta 2017 (arXiv:1710.01878) that ST-3 uses (arXiv:2212.01076).

    Raises `UserError` for a sparsity outside [0, 1), an end before the start, or a power that is not positive.
    """

    final: float
    start: int
    end: int
    power: float = 3.0

    def __post_init__(self):
        _check_sparsity(self.final)
        if not 0 <= self.start <= self.end:
            raise UserError(f"the ramp must start at or after step 0 and end later, not {self.start} → {self.end}")
        if not self.power > 0:
            raise UserError(f"the ramp's power must be positive, not {self.power:g}")

    def value(self, step: int) -> float:
        if step >= self.end:  # also the jump, when start == end
            return self.final
        if step <= self.start:
            return 0.0
        x = (step - self.start) / (self.end - self.start)
        return self.final * (1 - (1 - x) ** self.power)


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

    def __post_init__(self):
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
