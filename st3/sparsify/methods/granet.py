"""GraNet (Liu et al. 2021, arXiv:2106.10404): gradual magnitude pruning with neuroregeneration."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Duration, Length
from st3.errors import UserError
from st3.sparsify.allocation import erdos_renyi_kernel
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.masks import MaskPruner, above_quantile, clear_state, drop_and_grow, largest
from st3.sparsify.method import GlobalThreshold
from st3.sparsify.schedules import AlternatingPhases, PolynomialRamp, Schedule


@dataclass(frozen=True, kw_only=True)
class GraNet(GlobalThreshold):
    """GraNet (Liu et al. 2021, arXiv:2106.10404): dense at first. Now and then the smallest weights of all layers
    together are pruned along the ramp; then each layer replaces a fraction p(t) of what it kept by the zeroed weights
    with the largest gradients. With `schedule.initial` the start is sparse, at random, with ERK densities.

    `ŵ = w·m`; gradient and momentum are masked; what is pruned restarts from 0 when it is regrown.
    """

    name: ClassVar[str] = "granet"
    follows: ClassVar[str] = "cubic_0_50"

    every: Duration = Duration(1.6, "%")
    """From one update to the next; 1.6 % are the published 1000 steps of 160 epochs of CIFAR-10."""
    until: Duration = Duration(100, "%")
    """When p has fallen to its final value, along half a cosine."""
    regrow: float = 0.5
    """p at the start."""
    regrow_final: float = 0.005
    """p at the end."""

    def validate(self) -> None:
        super().validate()
        self.check_fraction("regrow")
        self.check_fraction("regrow_final")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "GraNetPruner":
        """With all weights kept. Raises `UserError` for phases that are dense again, and where `min_density` keeps more
        than the schedule."""
        if isinstance(schedule, AlternatingPhases):
            raise UserError("this method never becomes dense again: schedule=cubic")
        self.check_room(weights, schedule)
        return GraNetPruner(self, weights, schedule, length)


class GraNetPruner(MaskPruner):
    def __init__(self, method: GraNet, weights: Sequence[Tensor], schedule: Schedule, length: Length | None):
        super().__init__(weights, for_good=True)
        self._method, self._schedule = method, schedule
        self._every, self._until = method.interval("every", length), method.moment("until", length)
        self.level = schedule.initial if isinstance(schedule, PolynomialRamp) else 0.0
        self.starts_sparse = self.level > 0
        if self.starts_sparse and not weights[0].is_meta:
            counts = erdos_renyi_kernel([tuple(w.shape) for w in weights], 1 - self.level)
            self.set_masks([largest(torch.rand(m.shape), n) for m, n in zip(self.masks, counts, strict=True)])

    def needs_dense_gradient(self, step: int) -> bool:
        return step > 0 and step % self._every == 0

    def due(self, step: int, sparsity: float, level: float) -> bool:
        ramp_is_over = sparsity == self._schedule.value(step + 1)
        return sparsity > 0 and (self.needs_dense_gradient(step) or (ramp_is_over and sparsity != level))

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        if not self.changes(step, sparsity):
            return
        if sparsity > self.level:
            kept = FlatWeights.copy_of([w.detach() * m for w, m in zip(weights, self.masks, strict=True)])
            self.set_masks(above_quantile(kept, sparsity, self._method.min_density))
            self.level = sparsity
        method = self._method
        progress = min(step / max(self._until, 1), 1.0)
        replaced = method.regrow_final + (method.regrow - method.regrow_final) / 2 * (1 + math.cos(math.pi * progress))
        for mask, weight in zip(self.masks, weights, strict=True):
            grown = torch.zeros_like(mask)
            if self.needs_dense_gradient(step) and weight.grad is not None:
                count = math.ceil(replaced * int(mask.sum()))  # as the authors do
                new, grown = drop_and_grow(mask, weight.detach().abs(), weight.grad.abs(), count)
                mask.copy_(new)
            clear_state(optimizer, weight, ~mask | grown)
            if weight.grad is not None:
                weight.grad.mul_(mask)
            weight.detach().mul_(mask & ~grown)
