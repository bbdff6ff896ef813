"""STR, soft threshold reparameterization (Kusupati et al. 2020, arXiv:2002.03231)."""

from dataclasses import dataclass

import torch
from torch import nn

from st3.errors import UserError
from st3.sparsify.method import Pruner
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
        if self.threshold_decay is not None and self.threshold_decay < 0:
            raise UserError(f"method.threshold_decay={self.threshold_decay:g} must not be negative")

    def start(self, weights, schedule) -> "STRPruner":
        """With all thresholds at their start value."""
        return STRPruner(self, weights)


class STRPruner(Pruner):
    routes_gradient = True
    sparsity_is_outcome = True

    def __init__(self, method: STR, weights):
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
        slope = self.scores.detach().sigmoid() * (1 - self.scores.detach().sigmoid())
        pulls = [(w.grad * w.detach().sign()).sum() for w in weights]  # masked on its way back
        self.scores.grad = -slope * torch.stack(pulls)

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
