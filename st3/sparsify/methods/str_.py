"""STR, soft threshold reparameterization (Kusupati et al. 2020, arXiv:2002.03231)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Length
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.method import Method, Pruner, constant_sparsity
from st3.sparsify.projections import soft_threshold
from st3.sparsify.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class STR(Method):
    """STR (Kusupati et al. 2020, arXiv:2002.03231): `ŵ = sign(w)·relu(|w| − σ(s_l))` with one learned scalar s_l for
    each layer, σ the sigmoid.

    The gradient reaches the kept weights, and s_l by `Σ −g·sign(w)·σ'(s_l)` over them. The sparsity is an outcome of
    the start value and the decay of s; `sparsity` is what it is compared with.
    """

    name: ClassVar[str] = "str"
    follows: ClassVar[str] = "constant"

    threshold_init: float = -100.0
    """s at the start: −3200 to −12800 on ImageNet, about −100 on CIFAR."""
    threshold_decay: float | None = None
    """Weight decay of s; null: that of the weights."""

    def validate(self) -> None:
        if self.threshold_decay is not None:
            self.check_not_negative("threshold_decay")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "STRPruner":
        """With all thresholds at their start value. Raises `UserError` for a schedule that is not constant."""
        return STRPruner(self, weights, starts_sparse=constant_sparsity(schedule) > 0)


class STRPruner(Pruner):
    sparsity_is_outcome = True

    def __init__(self, method: STR, weights: Sequence[Tensor], *, starts_sparse: bool):
        self.starts_sparse = starts_sparse
        self._decay = method.threshold_decay
        start = torch.full((len(weights),), method.threshold_init, dtype=weights[0].dtype, device=weights[0].device)
        self.scores = nn.Parameter(start)
        """s, [layers]."""

    def parameter_groups(self) -> list[dict]:
        group = {"params": [self.scores]}
        return [group if self._decay is None else group | {"weight_decay": self._decay}]

    def route(self, layer: int, weight: Tensor, raw: Tensor, gradient: Tensor, step: int) -> Tensor:
        return gradient * (weight != 0)

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
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

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        thresholds = self.scores.detach().sigmoid()
        for weight, target, threshold in zip(raw.layers, out, thresholds, strict=True):
            target.copy_(soft_threshold(weight, threshold))
        return thresholds.clone()

    def state_dict(self) -> dict:
        return {"scores": self.scores.detach().clone()}

    def load_state_dict(self, state: dict) -> None:
        with torch.no_grad():
            self.scores.copy_(state["scores"])
