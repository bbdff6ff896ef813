"""Feather (Glentis Georgoulakis et al. 2023, BMVC): thresholding between soft and hard, straight-through gradients."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from st3.durations import Length
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.method import Method, Pruner
from st3.sparsify.schedules import Schedule
from st3.sparsify.thresholds import quantile


@dataclass(frozen=True, kw_only=True)
class Feather(Method):
    """Feather (BMVC 2023, arXiv:2310.02448): `ŵ = sign(w)·(|w|^p − τ^p)^(1/p)` where |w| > τ, else 0; τ is the global
    quantile, anew in each step.

    No rescaling: large weights are nearly unshrunk. The gradient of zeroed weights is multiplied by θ.
    """

    name: ClassVar[str] = "feather"
    follows: ClassVar[str] = "cubic_0_50"

    exponent: float = 3.0
    """p: 1 is soft thresholding, infinity would be hard thresholding."""
    theta: float | None = None
    """θ; null: 1 up to a final sparsity of 95 %, 0.5 above, as published."""

    def validate(self) -> None:
        self.check(self.exponent >= 1, "exponent", "must be at least 1: 3 is the published one")
        if self.theta is not None:
            self.check_fraction("theta")

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "FeatherPruner":
        """With θ for the schedule's final sparsity."""
        theta = self.theta
        if theta is None:
            theta = 1.0 if schedule.value(sys.maxsize) <= 0.95 else 0.5
        return FeatherPruner(self.exponent) if theta == 1 else DampedFeatherPruner(self.exponent, theta)


class FeatherPruner(Pruner):
    def __init__(self, exponent: float):
        self.exponent = exponent

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        threshold = quantile(raw.flat.abs(), sparsity)
        for weight, target in zip(raw.layers, out, strict=True):
            magnitude = weight.abs()
            # (|w|^p − τ^p)^(1/p) as |w|·(1 − (τ/|w|)^p)^(1/p), which does not lose small weights to their powers.
            left = (1 - (threshold / magnitude) ** self.exponent).clamp_min(0) ** (1 / self.exponent)
            target.copy_(torch.where(magnitude > threshold, weight * left, 0))
        return threshold.expand(len(raw.layers)).clone()


class DampedFeatherPruner(FeatherPruner):
    def __init__(self, exponent: float, theta: float):
        super().__init__(exponent)
        self.theta = theta

    def route(self, layer: int, weight: Tensor, gradient: Tensor, step: int) -> Tensor:
        return torch.where(weight != 0, gradient, gradient * self.theta)
