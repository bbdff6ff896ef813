"""Feather (Glentis Georgoulakis et al. 2023, BMVC): thresholding between soft and hard, straight-through gradients."""

import sys
from dataclasses import dataclass

import torch

from st3.errors import UserError
from st3.sparsify.method import Pruner
from st3.sparsify.thresholds import quantile


@dataclass(frozen=True, kw_only=True)
class Feather:
    """`ŵ = sign(w)·(|w|^p − τ^p)^(1/p)` where |w| > τ, else 0; τ is the global quantile, anew in each step.

    No rescaling: large weights are nearly unshrunk. The gradient of zeroed weights is multiplied by θ.
    """

    exponent: float = 3.0
    """p: 1 is soft thresholding, infinity would be hard thresholding."""
    theta: float | None = None
    """θ; null: 1 up to a final sparsity of 95 %, 0.5 above, as published."""

    def __post_init__(self):
        if not self.exponent >= 1:
            raise UserError(f"method.exponent={self.exponent:g} must be at least 1: 3 is the published one")
        if self.theta is not None and not 0 <= self.theta <= 1:
            raise UserError(f"method.theta={self.theta:g} lies outside [0, 1]")

    def start(self, weights, schedule) -> "FeatherPruner":
        """With θ for the schedule's final sparsity."""
        theta = self.theta
        if theta is None:
            theta = 1.0 if schedule.value(sys.maxsize) <= 0.95 else 0.5
        return FeatherPruner(self.exponent, theta)


class FeatherPruner(Pruner):
    def __init__(self, exponent: float, theta: float):
        self.exponent, self.theta = exponent, theta
        self.routes_gradient = theta != 1

    def route(self, layer, weight, gradient, step):
        return torch.where(weight != 0, gradient, gradient * self.theta)

    def project(self, raw, sparsity, out, costs=None):
        threshold = quantile(raw.flat.abs(), sparsity)
        for weight, target in zip(raw.layers, out, strict=True):
            magnitude = weight.abs()
            # (|w|^p − τ^p)^(1/p) as |w|·(1 − (τ/|w|)^p)^(1/p), which does not lose small weights to their powers.
            left = (1 - (threshold / magnitude) ** self.exponent).clamp_min(0) ** (1 / self.exponent)
            target.copy_(torch.where(magnitude > threshold, weight * left, 0))
        return threshold.expand(len(raw.layers)).clone()
