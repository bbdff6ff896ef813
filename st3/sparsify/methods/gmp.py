"""Gradual magnitude pruning (Zhu & Gupta 2017, arXiv:1710.01878)."""

from dataclasses import dataclass
from typing import Literal

from st3.sparsify.allocation import uniform
from st3.sparsify.masks import MaskPruner, above_quantile, largest
from st3.sparsify.method import check_choice, check_steps


@dataclass(frozen=True, kw_only=True)
class GMP:
    """Along the ramp, now and then, the smallest weights are masked; `ŵ = w·m`, and masked weights get no gradient.

    They keep their value (and its decay), so one that is still large at the next update can come back, but nearly all
    stay masked. The last update is the one that reaches the target.
    """

    allocation: Literal["global", "uniform"] = "global"
    """One threshold for all layers, or the same sparsity in each of them."""
    every: int = 100
    """Optimizer steps between updates of the masks."""

    def __post_init__(self):
        check_choice("allocation", self.allocation, ("global", "uniform"))
        check_steps("every", self.every)

    def start(self, weights, schedule) -> "GMPPruner":
        """With all weights kept."""
        return GMPPruner(self, weights, schedule)


class GMPPruner(MaskPruner):
    def __init__(self, method: GMP, weights, schedule):
        super().__init__(weights, for_good=False)
        self._method, self._schedule = method, schedule
        self._level = 0.0  # the sparsity of the masks

    def changes(self, step, sparsity):
        ramp_is_over = sparsity == self._schedule.value(step + 1)
        return sparsity != self._level and (step % self._method.every == 0 or ramp_is_over or self._level == 0)

    def update(self, step, sparsity, raw, optimizer):
        if raw is None:  # dense again: the next phase starts anew
            self._level = 0.0
        elif self.changes(step, sparsity):
            if self._method.allocation == "global":
                self.set_masks(above_quantile(raw, sparsity))
            else:
                counts = uniform([w.shape for w in raw.layers], 1 - sparsity)
                self.set_masks([largest(w.abs(), count) for w, count in zip(raw.layers, counts, strict=True)])
            self._level = sparsity

    def state_dict(self):
        return super().state_dict() | {"level": self._level}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._level = state["level"]
