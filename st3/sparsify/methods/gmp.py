"""Gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from torch.optim import Optimizer

from st3.durations import Duration, Length
from st3.sparsify.allocation import uniform
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.masks import MaskPruner, above_quantile, largest
from st3.sparsify.method import GlobalThreshold
from st3.sparsify.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class GMP(GlobalThreshold):
    """GMP (Zhu & Gupta 2017, arXiv:1710.01878): along the ramp, now and then, the smallest weights are masked;
    `ŵ = w·m`, and masked weights get no gradient.

    They keep their value (and its decay), so one that is still large at the next update can come back, but nearly all
    stay masked. The last update is the one that reaches the target.
    """

    name: ClassVar[str] = "gmp"

    allocation: Literal["global", "uniform"] = "global"
    """One threshold for all layers, or the same sparsity in each of them."""
    every: Duration = Duration(1, "%")
    """From one update of the masks to the next."""

    def validate(self) -> None:
        super().validate()
        idle = self.allocation == "uniform" and self.min_density > 0
        self.check(not idle, "min_density", "has no effect with method.allocation=uniform")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "GMPPruner":
        """With all weights kept. Raises `UserError` where `min_density` keeps more than the schedule."""
        self.check_room(weights, schedule)
        return GMPPruner(self, self.interval("every", length), weights, schedule)


class GMPPruner(MaskPruner):
    def __init__(self, method: GMP, every: int, weights: Sequence[Tensor], schedule: Schedule):
        super().__init__(weights, for_good=False)
        self._method, self._every, self._schedule = method, every, schedule

    def due(self, step: int, sparsity: float, level: float) -> bool:
        ramp_is_over = sparsity == self._schedule.value(step + 1)
        return sparsity not in (0, level) and (step % self._every == 0 or ramp_is_over or level == 0)

    def update(self, step: int, sparsity: float, raw: FlatWeights | None, optimizer: Optimizer) -> None:
        super().update(step, sparsity, raw, optimizer)
        if raw is not None and self.changes(step, sparsity):
            if self._method.allocation == "global":
                self.set_masks(above_quantile(raw, sparsity, self._method.min_density))
            else:
                counts = uniform([w.shape for w in raw.layers], 1 - sparsity)
                self.set_masks([largest(w.abs(), count) for w, count in zip(raw.layers, counts, strict=True)])
            self.level = sparsity
