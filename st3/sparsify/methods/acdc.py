"""AC/DC (Peste et al. 2021, arXiv:2106.12379): compressed and dense phases in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Length
from st3.errors import UserError
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.masks import MaskPruner, above_quantile, clear_state
from st3.sparsify.method import GlobalThreshold
from st3.sparsify.schedules import PolynomialRamp, Schedule


@dataclass(frozen=True, kw_only=True)
class ACDC(GlobalThreshold):
    """AC/DC (Peste et al. 2021, arXiv:2106.12379): in a compressed phase only the globally largest weights of its first
    moment live, the others are 0; in a dense phase all do, the zeroed ones from 0 on, and without momentum.

    The phases are the schedule's (`AlternatingPhases`). `ŵ = w·m`, the gradient is masked.
    """

    name: ClassVar[str] = "acdc"
    follows: ClassVar[str] = "acdc"

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "ACDCPruner":
        """With all weights kept. Raises `UserError` for a ramp, or a `min_density` above 1 − s."""
        if isinstance(schedule, PolynomialRamp) and schedule.start < schedule.end:
            raise UserError("this method alternates between dense and sparse phases and follows no ramp: schedule=acdc")
        self.check_room(weights, schedule)
        return ACDCPruner(self.min_density, weights)


class ACDCPruner(MaskPruner):
    def __init__(self, min_density: float, weights: Sequence[Tensor]):
        super().__init__(weights, for_good=True)
        self._min_density = min_density

    def due(self, step: int, sparsity: float, level: float) -> bool:
        return sparsity != level

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        if self.level and not sparsity:  # momentum must not move in this step what is to restart from 0 after it
            for weight, mask in zip(weights, self.masks, strict=True):
                clear_state(optimizer, weight, ~mask)

    def update(self, step: int, sparsity: float, raw: FlatWeights | None, optimizer: Optimizer) -> None:
        if raw is not None and sparsity != self.level:
            self.set_masks(above_quantile(raw, sparsity, self._min_density))
        if self.level and not sparsity:
            for mask in self.masks:
                mask.fill_(True)
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    clear_state(optimizer, weight)
        self.level = sparsity
        super().update(step, sparsity, raw, optimizer)
