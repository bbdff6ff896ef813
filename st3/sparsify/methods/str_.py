"""STR, soft threshold reparameterization (Kusupati et al. 2020, arXiv:2002.03231)."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from st3.errors import UserError
from st3.sparsify.method import Pruner, constant_sparsity
from st3.sparsify.projections import soft_threshold


@dataclass(frozen=True, kw_only=True)
class STR:
    """`ŵ = sign(w)·relu(|w| − σ(s_l))` with one learned scalar s_l for each layer, σ the sigmoid.

    The gradient reaches the kept weights, and s_l by `Σ −g·sign(w)·σ'(s_l)` over them. The sparsity is an outcome of
    the start value and the decay of s; `sparsity` is what it is compared with.
    """

    threshold_init: float = -100.0
    """s at the start: −3200 to −12800 on ImageNet, about −100 on CIFAR."""
    threshold_decay: float | None = None
    """Weight decay of s; null: that of the weights."""

    def __post_init__(self):
        if self.threshold_decay is not None and not self.threshold_decay >= 0:
            raise UserError(f"method.threshold_decay={self.threshold_decay:g} must not be negative")

    def start(self, weights, schedule) -> "STRPruner":
        """With all thresholds at their start value. Raises `UserError` for a schedule that is not constant."""
        return STRPruner(self, weights, starts_sparse=constant_sparsity(schedule) > 0)


class STRPruner(Pruner):
    routes_gradient = True
    sparsity_is_outcome = True

    def __init__(self, method: STR, weights, *, starts_sparse: bool):
        self.starts_sparse = starts_sparse
        self._decay = method.threshold_decay
        start = torch.full((len(weights),), method.threshold_init, dtype=weights[0].dtype, device=weights[0].device)
        self.scores = nn.Parameter(start)
        """s, [layers]."""

    def parameter_groups(self):
        group = {"params": [self.scores]}
        return [group if self._decay is None else group | {"weight_decay": self._decay}]

    def route(self, layer, weight, gradient, step):
        return gradient * (weight != 0)

    def before_step(self, step, sparsity, weights, optimizer):
        if not sparsity:
            return
        if self._decay is None:
            mine, theirs = (self._group_of(p, optimizer) for p in (self.scores, weights[0]))
            mine["weight_decay"] = theirs["weight_decay"]
        slope = self.scores.detach().sigmoid() * (1 - self.scores.detach().sigmoid())
        # The gradients were masked on their way back. A layer that took no part has none.
        pulls = [slope.new_zeros(()) if w.grad is None else (w.grad * w.detach().sign()).sum() for w in weights]
        self.scores.grad = -slope * torch.stack(pulls)

    @staticmethod
    def _group_of(parameter: nn.Parameter, optimizer: Optimizer) -> dict:
        return next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))

    def project(self, raw, sparsity, out, costs=None):
        thresholds = self.scores.detach().sigmoid()
        for weight, target, threshold in zip(raw.layers, out, thresholds, strict=True):
            target.copy_(soft_threshold(weight, threshold))
        return thresholds.clone()

    def state_dict(self):
        return {"scores": self.scores.detach().clone()}

    def load_state_dict(self, state):
        with torch.no_grad():
            self.scores.copy_(state["scores"])
