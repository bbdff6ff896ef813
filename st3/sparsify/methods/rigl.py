"""RigL (Evci et al. 2020, arXiv:1911.11134), and SET (Mocanu et al. 2018, arXiv:1707.04780) as its random variant."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Duration, Length
from st3.sparsify.allocation import erdos_renyi_kernel, uniform
from st3.sparsify.masks import MaskPruner, clear_state, drop_and_grow, largest
from st3.sparsify.method import Method, constant_sparsity
from st3.sparsify.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class RigL(Method):
    """RigL (Evci et al. 2020, arXiv:1911.11134): sparse from the start, each layer at a density of its own that never
    changes; the connections move.

    Now and then each layer drops the smallest `f(t)` of its kept weights and grows as many where the gradient, that of
    zeroed weights included, is largest (or anywhere). Grown weights and their momentum start at 0. `ŵ = w·m`, the
    gradient is masked.
    """

    name: ClassVar[str] = "rigl"
    follows: ClassVar[str] = "constant"

    allocation: Literal["erk", "uniform"] = "erk"
    """Densities of the layers: Erdős-Rényi-Kernel, or all the same."""
    growth: Literal["gradient", "random"] = "gradient"
    """What decides where a weight grows: the gradient, or chance."""
    every: Duration = Duration(1, "%")
    """From one update to the next. The published 100 steps are 0.3 % of a training of ImageNet, which in a short one
    would leave what has grown no time."""
    until: Duration = Duration(75, "%")
    """From when on the connections stay."""
    drop: float = 0.3
    """α: `f(t) = (α/2)(1 + cos(π·t/until))`."""

    def validate(self) -> None:
        self.check_fraction("drop")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "RigLPruner":
        """With random masks. Raises `UserError` for a schedule that is not constant."""
        return RigLPruner(self, weights, constant_sparsity(schedule), length)


@dataclass(frozen=True, kw_only=True)
class SET(RigL):
    """SET (Mocanu et al. 2018, arXiv:1707.04780) as RigL's authors compare it: RigL with growth at random."""

    name: ClassVar[str] = "set"

    growth: Literal["gradient", "random"] = "random"


class RigLPruner(MaskPruner):
    starts_sparse = True

    def __init__(self, method: RigL, weights: Sequence[Tensor], sparsity: float, length: Length | None):
        super().__init__(weights, for_good=True)
        self._method = method
        self._every, self._until = method.interval("every", length), method.moment("until", length)
        self._seed = 0  # of random growth: the same on every process, another one in every run
        if weights[0].is_meta:
            return
        allocate = erdos_renyi_kernel if method.allocation == "erk" else uniform
        counts = allocate([w.shape for w in weights], 1 - sparsity)
        self.set_masks([largest(torch.rand(m.shape), n) for m, n in zip(self.masks, counts, strict=True)])
        if method.growth == "random":
            self._seed = int(torch.randint(2**31, ()))

    def needs_dense_gradient(self, step: int) -> bool:
        return self._moves(step) and self._method.growth == "gradient"

    def due(self, step: int, sparsity: float, level: float) -> bool:
        return sparsity > 0 and self._moves(step)

    def _moves(self, step: int) -> bool:
        return 0 < step < self._until and step % self._every == 0

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        if not self.changes(step, sparsity):
            return
        replaced = self._method.drop / 2 * (1 + math.cos(math.pi * step / self._until))
        for layer, weight in enumerate(weights):
            if weight.grad is None:  # the layer took no part
                continue
            mask = self.masks[layer]
            if self._method.growth == "gradient":
                growth = weight.grad.abs()
            else:
                chance = torch.Generator().manual_seed(self._seed + 1_000_003 * step + layer)
                growth = torch.rand(mask.shape, generator=chance).to(mask.device)
            count = int(replaced * int(mask.sum()))  # cut off, as the authors do
            new, grown = drop_and_grow(mask, weight.detach().abs(), growth, count)
            mask.copy_(new)
            clear_state(optimizer, weight, grown)
            weight.grad.mul_(mask)
            weight.detach().mul_(mask & ~grown)

    def state_dict(self) -> dict:
        return super().state_dict() | {"seed": self._seed}

    def load_state_dict(self, state: dict) -> None:
        super().load_state_dict(state)
        self._seed = state["seed"]
