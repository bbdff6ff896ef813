"""No pruning: the baseline, trained by exactly the same loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from st3.durations import Length
from st3.sparsify.costs import Costs
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.method import Method, Pruner
from st3.sparsify.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class Dense(Method):
    """The projection is the identity; whatever sparsity is asked for has no effect."""

    name: ClassVar[str] = "dense"
    follows: ClassVar[str] = "constant"

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "DensePruner":
        """Nothing is kept between steps."""
        return DensePruner()


class DensePruner(Pruner):
    def weigh(self, costs: Costs) -> None:
        pass

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        torch._foreach_copy_(list(out), raw.layers)
        return raw.flat.new_zeros(len(raw.layers))

    def updates(self, schedule: Schedule, steps: int) -> list[int]:
        return []
