"""RigL (Evci et al. 2020, arXiv:1911.11134), and SET (Mocanu et al. 2018, arXiv:1707.04780) as its random variant."""

import math
from dataclasses import dataclass
from typing import Literal

import torch

from st3.sparsify.allocation import erdos_renyi_kernel, uniform
from st3.sparsify.masks import MaskPruner, clear_state, drop_and_grow, largest
from st3.sparsify.method import check_choice, check_fraction, check_steps, constant_sparsity


@dataclass(frozen=True, kw_only=True)
class RigL:
    """Sparse from the start, each layer at a density of its own that never changes; the connections move.

    Now and then each layer drops the smallest `f(t)` of its kept weights and grows as many where the gradient, that of
    zeroed weights included, is largest (or anywhere). Grown weights and their momentum start at 0. `ŵ = w·m`, the
    gradient is masked.
    """

    allocation: Literal["erk", "uniform"] = "erk"
    """Densities of the layers: Erdős-Rényi-Kernel, or all the same."""
    growth: Literal["gradient", "random"] = "gradient"
    every: int = 100
    """Optimizer steps between updates."""
    until: int | None = None
    """The step from which the connections stay; null: they never do."""
    drop: float = 0.3
    """α: `f(t) = (α/2)(1 + cos(π·t/until))`."""

    def __post_init__(self):
        check_choice("allocation", self.allocation, ("erk", "uniform"))
        check_choice("growth", self.growth, ("gradient", "random"))
        check_steps("every", self.every)
        check_fraction("drop", self.drop)

    def start(self, weights, schedule) -> "RigLPruner":
        """With random masks. Raises `UserError` for a schedule that is not constant."""
        return RigLPruner(self, weights, constant_sparsity(schedule))


class RigLPruner(MaskPruner):
    starts_sparse = True

    def __init__(self, method: RigL, weights, sparsity: float):
        super().__init__(weights, for_good=True)
        self._method = method
        self._seed = 0  # of random growth: the same on every process, another one in every run
        if weights[0].is_meta:
            return
        allocate = erdos_renyi_kernel if method.allocation == "erk" else uniform
        counts = allocate([w.shape for w in weights], 1 - sparsity)
        self.set_masks([largest(torch.rand(m.shape), n) for m, n in zip(self.masks, counts, strict=True)])
        if method.growth == "random":
            self._seed = int(torch.randint(2**31, ()))

    def needs_dense_gradient(self, step):
        return self.changes(step, 0.0) and self._method.growth == "gradient"

    def changes(self, step, sparsity):
        until = self._method.until
        return step > 0 and step % self._method.every == 0 and (until is None or step < until)

    def before_step(self, step, sparsity, weights, optimizer):
        if not self.changes(step, sparsity):
            return
        progress = step / self._method.until if self._method.until else 0.0
        replaced = self._method.drop / 2 * (1 + math.cos(math.pi * progress))
        for layer, weight in enumerate(weights):
            if weight.grad is None:  # the layer took no part
                continue
            mask = self.masks[layer]
            if self._method.growth == "gradient":
                growth = weight.grad.abs()
            else:
                chance = torch.Generator().manual_seed(self._seed + 1_000_003 * step + layer)
                growth = torch.rand(mask.shape, generator=chance).to(mask.device)
            count = round(replaced * int(mask.sum()))
            new, grown = drop_and_grow(mask, weight.detach().abs(), growth, count)
            mask.copy_(new)
            clear_state(optimizer, weight, grown)
            weight.grad.mul_(mask)
            weight.detach().mul_(mask & ~grown)

    def state_dict(self):
        return super().state_dict() | {"seed": self._seed}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._seed = state["seed"]
