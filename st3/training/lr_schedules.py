"""Learning-rate schedules as functions of the optimizer step: factors of the peak rate.

`value(step)` is used by optimizer step `step` (0-based) of `total`. The first `warmup`
steps lead up to the peak, which the last of them has: along a line, in `OneCycleLR` along half a cosine.
"""

import bisect
import math
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ConstantLR:
    """The peak rate after the warm-up."""

    warmup: int = 0

    def value(self, step: int) -> float:
        return min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0


@dataclass(frozen=True, kw_only=True)
class MultiStepLR:
    """Multiplied by `gamma` at each milestone (He et al. 2015, arXiv:1512.03385)."""

    milestones: tuple[int, ...]
    gamma: float
    warmup: int = 0

    def value(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return self.gamma ** bisect.bisect_right(self.milestones, step)


@dataclass(frozen=True, kw_only=True)
class CosineLR:
    """From the peak to `final` along half a cosine (SGDR without restarts, arXiv:1608.03983)."""

    total: int
    final: float = 0.0
    warmup: int = 0

    def value(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return _cosine(1.0, self.final, (step - self.warmup) / (self.total - self.warmup))


@dataclass(frozen=True, kw_only=True)
class OneCycleLR:
    """Up from `initial` to the peak over `warmup` steps, down to `final`, both along half a cosine.

    Smith & Topin 2017, arXiv:1708.07120; `torch.optim.lr_scheduler.OneCycleLR` has the same two phases.
    """

    total: int
    warmup: int
    initial: float
    final: float

    def value(self, step: int) -> float:
        peak = max(self.warmup - 1, 0)
        if step < peak:
            return _cosine(self.initial, 1.0, step / peak)
        return _cosine(1.0, self.final, (step - peak) / max(self.total - 1 - peak, 1))


def _cosine(start: float, end: float, x: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * x)) / 2
