"""AC/DC (Peste et al. 2021, arXiv:2106.12379): compressed and dense phases in turn."""

from dataclasses import dataclass

from st3.errors import UserError
from st3.sparsify.masks import MaskPruner, above_quantile, clear_state
from st3.sparsify.schedules import PolynomialRamp


@dataclass(frozen=True, kw_only=True)
class ACDC:
    """In a compressed phase only the globally largest weights of its first moment live, the others are 0; in a dense
    phase all do, the zeroed ones from 0 on, and without momentum.

    The phases are the schedule's (`AlternatingPhases`). `ŵ = w·m`, the gradient is masked.
    """

    def start(self, weights, schedule) -> "ACDCPruner":
        """With all weights kept. Raises `UserError` for a ramp."""
        if isinstance(schedule, PolynomialRamp) and schedule.start < schedule.end:
            raise UserError("this method alternates between dense and sparse phases and follows no ramp: schedule=acdc")
        return ACDCPruner(weights)


class ACDCPruner(MaskPruner):
    def __init__(self, weights):
        super().__init__(weights, for_good=True)
        self._level = 0.0  # the sparsity of the masks

    def changes(self, step, sparsity):
        return sparsity != self._level

    def before_step(self, step, sparsity, weights, optimizer):
        if self._level and not sparsity:  # momentum must not move in this step what is to restart from 0 after it
            for weight, mask in zip(weights, self.masks, strict=True):
                clear_state(optimizer, weight, ~mask)

    def update(self, step, sparsity, raw, optimizer):
        if sparsity and sparsity != self._level:
            self.set_masks(above_quantile(raw, sparsity))
        if self._level and not sparsity:
            for mask in self.masks:
                mask.fill_(True)
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    clear_state(optimizer, weight)
        self._level = sparsity
        super().update(step, sparsity, raw, optimizer)

    def state_dict(self):
        return super().state_dict() | {"level": self._level}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._level = state["level"]
