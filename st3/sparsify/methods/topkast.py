"""Top-KAST (Jayakumar et al. 2020, NeurIPS): sparse forward, a larger sparse set in the backward pass."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from st3.durations import Length
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.masks import above_quantile
from st3.sparsify.method import GlobalThreshold, Pruner, constant_sparsity
from st3.sparsify.schedules import Schedule
from st3.sparsify.thresholds import layer_thresholds


@dataclass(frozen=True, kw_only=True)
class TopKAST(GlobalThreshold):
    """Top-KAST (Jayakumar et al. 2020, arXiv:2106.03517): `ŵ = w·1[A]`, A the globally largest fraction D of all
    weights; the gradient reaches the largest D + M, set B.

    An extra decay keeps weights outside A from lingering: `λ·lr·w` on A, `λ·lr·w/D` on B without A.
    """

    name: ClassVar[str] = "topkast"
    follows: ClassVar[str] = "constant"

    backward: float = 0.1
    """M: the fraction of all weights that are zeroed and still get gradient; cut to what is there."""
    decay: float = 1e-4
    """λ."""

    def validate(self) -> None:
        super().validate()
        self.check_fraction("backward")
        self.check_not_negative("decay")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "TopKASTPruner":
        """Sparse at once. Raises `UserError` for a schedule that is not constant, or a `min_density` above 1 − s."""
        self.check_room(weights, schedule)
        return TopKASTPruner(self, weights, constant_sparsity(schedule))


class TopKASTPruner(Pruner):
    def __init__(self, method: TopKAST, weights: Sequence[Tensor], sparsity: float):
        self._decay, self._density, self._min_density = method.decay, 1 - sparsity, method.min_density
        self.starts_sparse = sparsity > 0
        self._outside = max(sparsity - method.backward, 0.0)  # the fraction of weights that is not in B
        self._active, self._reached = ([torch.ones_like(w, dtype=torch.bool) for w in weights] for _ in range(2))
        """A and B, bool, laid out as the weights."""
        self._before: list[Tensor] = []  # the raw weights before the step under way

    def route(self, layer: int, weight: Tensor, raw: Tensor, gradient: Tensor, step: int) -> Tensor:
        return gradient * self._reached[layer]

    def before_step(self, step: int, sparsity: float, weights: Sequence[nn.Parameter], optimizer: Optimizer) -> None:
        if not sparsity:
            return
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for weight, active, reached in zip(weights, self._active, self._reached, strict=True):
            decay = self._decay * (active + (reached & ~active).to(weight.dtype) / self._density)
            weight.detach().sub_(weight * decay * rates[id(weight)])
        self._before = [weight.detach().clone() for weight in weights]

    def update(self, step: int, sparsity: float, raw: FlatWeights | None, optimizer: Optimizer) -> None:
        if raw is None:
            return
        for weight, before, reached in zip(raw.layers, self._before, self._reached, strict=bool(self._before)):
            weight.copy_(torch.where(reached, weight, before))  # neither decay nor momentum moves what is outside B
        self._before = []
        for masks, outside in ((self._active, sparsity), (self._reached, self._outside)):
            everywhere = [torch.ones_like(mask) for mask in masks]
            above = above_quantile(raw, outside, self._min_density) if outside else everywhere
            torch._foreach_copy_(masks, above)

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        thresholds = layer_thresholds(raw.flat.abs(), raw.sizes, sparsity, min_density=self._min_density)
        for weight, threshold, target in zip(raw.layers, thresholds, out, strict=True):
            torch.mul(weight, weight.abs() > threshold, out=target)
        return thresholds.clone()

    def state_dict(self) -> dict:
        return {"active": [m.clone() for m in self._active], "reached": [m.clone() for m in self._reached]}

    def load_state_dict(self, state: dict) -> None:
        for mine, theirs in ((self._active, state["active"]), (self._reached, state["reached"])):
            for mask, saved in zip(mine, theirs, strict=True):
                mask.copy_(saved)
