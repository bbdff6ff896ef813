"""Top-KAST (Jayakumar et al. 2020, NeurIPS): sparse forward, a larger sparse set in the backward pass."""

from dataclasses import dataclass

import torch

from st3.errors import UserError
from st3.sparsify.method import Pruner, check_fraction, constant_sparsity
from st3.sparsify.thresholds import quantile


@dataclass(frozen=True, kw_only=True)
class TopKAST:
    """`ŵ = w·1[A]`, A the globally largest fraction D of all weights; the gradient reaches the largest D + M, set B.

    An extra decay keeps weights outside A from lingering: `λ·lr·w` on A, `λ·lr·w/D` on B without A.
    """

    backward: float = 0.1
    """M: the fraction of all weights that are zeroed and still get gradient; cut to what is there."""
    decay: float = 1e-4
    """λ."""

    def __post_init__(self):
        check_fraction("backward", self.backward)
        if not self.decay >= 0:
            raise UserError(f"method.decay={self.decay:g} must not be negative")

    def start(self, weights, schedule) -> "TopKASTPruner":
        """Sparse at once. Raises `UserError` for a schedule that is not constant."""
        return TopKASTPruner(self, weights, constant_sparsity(schedule))


class TopKASTPruner(Pruner):
    routes_gradient = True

    def __init__(self, method: TopKAST, weights, sparsity: float):
        self._decay, self._density = method.decay, 1 - sparsity
        self.starts_sparse = sparsity > 0
        self._outside = max(sparsity - method.backward, 0.0)  # the fraction of weights that is not in B
        self._active, self._reached = ([torch.ones_like(w, dtype=torch.bool) for w in weights] for _ in range(2))
        """A and B, bool, laid out as the weights."""

    def route(self, layer, weight, gradient, step):
        return gradient * self._reached[layer]

    def before_step(self, step, sparsity, weights, optimizer):
        if not sparsity:
            return
        rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
        for weight, active, reached in zip(weights, self._active, self._reached, strict=True):
            decay = self._decay * (active + (reached & ~active).to(weight.dtype) / self._density)
            weight.detach().sub_(weight * decay * rates[id(weight)])

    def update(self, step, sparsity, raw, optimizer):
        if raw is None:
            return
        magnitudes = raw.flat.abs()
        for masks, outside in ((self._active, sparsity), (self._reached, self._outside)):
            threshold = quantile(magnitudes, outside) if outside else -1
            for mask, weight in zip(masks, raw.layers, strict=True):
                mask.copy_(weight.abs() > threshold)

    def project(self, raw, sparsity, out, costs=None):
        threshold = quantile(raw.flat.abs(), sparsity)
        for weight, target in zip(raw.layers, out, strict=True):
            torch.mul(weight, weight.abs() > threshold, out=target)
        return threshold.expand(len(raw.layers)).clone()

    def state_dict(self):
        return {"active": [m.clone() for m in self._active], "reached": [m.clone() for m in self._reached]}

    def load_state_dict(self, state):
        for mine, theirs in ((self._active, state["active"]), (self._reached, state["reached"])):
            for mask, saved in zip(mine, theirs, strict=True):
                mask.copy_(saved)
