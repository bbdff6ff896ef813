"""GraNet (Liu et al. 2021, arXiv:2106.10404): gradual magnitude pruning with neuroregeneration."""

import math
from dataclasses import dataclass

import torch

from st3.errors import UserError
from st3.sparsify.masks import MaskPruner, clear_state, drop_and_grow, flat_magnitudes
from st3.sparsify.method import check_fraction, check_steps
from st3.sparsify.schedules import AlternatingPhases
from st3.sparsify.thresholds import quantile


@dataclass(frozen=True, kw_only=True)
class GraNet:
    """Dense at first. Now and then the smallest weights of all layers together are pruned along the ramp; then each
    layer replaces a fraction p(t) of what it kept by the zeroed weights with the largest gradients.

    `ŵ = w·m`; gradient and momentum are masked; what is pruned restarts from 0 when it is regrown.
    """

    every: int = 1000
    """Optimizer steps between updates."""
    until: int | None = None
    """The length of training in steps, over which p falls along half a cosine; null: p stays."""
    regrow: float = 0.5
    """p at the start."""
    regrow_final: float = 0.005
    """p at the end."""

    def __post_init__(self):
        check_steps("every", self.every)
        check_fraction("regrow", self.regrow)
        check_fraction("regrow_final", self.regrow_final)

    def start(self, weights, schedule) -> "GraNetPruner":
        """With all weights kept. Raises `UserError` for phases that are dense again."""
        if isinstance(schedule, AlternatingPhases):
            raise UserError("this method never becomes dense again: schedule=cubic")
        return GraNetPruner(self, weights, schedule)


class GraNetPruner(MaskPruner):
    def __init__(self, method: GraNet, weights, schedule):
        super().__init__(weights, for_good=True)
        self._method, self._schedule = method, schedule
        self._level = 0.0  # the sparsity of the masks

    def needs_dense_gradient(self, step):
        return step > 0 and step % self._method.every == 0

    def changes(self, step, sparsity):
        ramp_is_over = sparsity == self._schedule.value(step + 1)
        return sparsity > 0 and (self.needs_dense_gradient(step) or (ramp_is_over and sparsity != self._level))

    def before_step(self, step, sparsity, weights, optimizer):
        if not self.changes(step, sparsity):
            return
        if sparsity > self._level:
            magnitudes = flat_magnitudes([w.detach() * m for w, m in zip(weights, self.masks, strict=True)])
            threshold = quantile(magnitudes, sparsity)
            self.set_masks([(w.detach() * m).abs() > threshold for w, m in zip(weights, self.masks, strict=True)])
            self._level = sparsity
        method = self._method
        progress = 0.0 if method.until is None else min(step / max(method.until, 1), 1.0)
        replaced = method.regrow_final + (method.regrow - method.regrow_final) / 2 * (1 + math.cos(math.pi * progress))
        for mask, weight in zip(self.masks, weights, strict=True):
            grown = torch.zeros_like(mask)
            if self.needs_dense_gradient(step) and weight.grad is not None:
                count = round(replaced * int(mask.sum()))
                new, grown = drop_and_grow(mask, weight.detach().abs(), weight.grad.abs(), count)
                mask.copy_(new)
            clear_state(optimizer, weight, ~mask | grown)
            if weight.grad is not None:
                weight.grad.mul_(mask)
            weight.detach().mul_(mask & ~grown)

    def state_dict(self):
        return super().state_dict() | {"level": self._level}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self._level = state["level"]
