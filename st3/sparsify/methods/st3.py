"""ST-3, its σ variant and its ablations (Vanderschueren & De Vleeschouwer 2023, arXiv:2212.01076)."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from st3.durations import Length
from st3.sparsify.costs import Costs
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.kernels import kernels_for
from st3.sparsify.method import GlobalThreshold, Pruner
from st3.sparsify.projections import (
    cost_scales,
    hard_threshold,
    power_threshold,
    rescale_factor,
    sigma,
    soft_threshold,
)
from st3.sparsify.schedules import Schedule
from st3.sparsify.thresholds import layer_thresholds


@dataclass(frozen=True, kw_only=True)
class ST3(GlobalThreshold):
    """ST-3 (arXiv:2212.01076) and its ablations: soft thresholding with straight-through gradients.

    One global threshold, the scheduled quantile of all magnitudes; weights are shrunk by it and each output channel
    is rescaled; the gradient reaches every raw weight.
    """

    name: ClassVar[str] = "st3"

    shrink: Literal["soft", "hard"] = "soft"
    """Soft thresholding, or keep magnitudes as they are ("hard": weights jump when they cross the threshold)."""
    exponent: float = 1.0
    """p of the soft threshold, (|w|^p − τ^p)^(1/p): 1 subtracts τ; the larger, the less large weights shrink."""
    rescale: bool = True
    """Restore each output channel's mean magnitude by κ."""
    gradient: Literal["straight_through", "rescaled"] = "straight_through"
    """Gradient for the raw weights: that of the sparse ones, or this times κ, as the chain rule has it."""
    theta: float | None = 1.0
    """Factor of the gradient of zeroed weights; 0 masks it. null: 1 up to a final sparsity of 95 %, 0.5 above."""
    dead_channels: Literal["straight_through", "masked"] = "straight_through"
    """Whether output channels without a weight that is not zero get a gradient."""
    layer_sigma: bool = False
    """ST-3σ: compare |w|/σ_l instead of |w| over the layers, which spreads the zeros more evenly."""
    cost_exponent: float = 0.0
    """γ of the thresholds τ·c_l^γ, c_l what one weight of layer l costs: the larger, the more zeros in costly ones."""
    cost: Literal["macs", "time"] = "macs"
    """c_l: its multiply-accumulates, or the time of each weight that is left, from method.times."""

    def validate(self) -> None:
        super().validate()
        self.check(
            1 <= self.exponent <= 100,
            "exponent",
            "lies outside [1, 100]: 1 is ST-3's, 3 Feather's, and the limit is method.shrink=hard",
        )
        self.check(self.shrink == "soft" or self.exponent == 1, "exponent", "has no effect with method.shrink=hard")
        self.check(self.rescale or self.gradient != "rescaled", "gradient", "has no effect with method.rescale=false")
        self.check(0 <= self.cost_exponent <= 10, "cost_exponent", "lies outside [0, 10]: 0 is ST-3's")
        self.check(self.cost == "macs" or self.cost_exponent > 0, "cost", "has no effect with method.cost_exponent=0")
        if self.theta is not None:
            self.check_fraction("theta")

    @property
    def scales_by(self) -> Literal["", "macs", "time"]:
        return self.cost if self.cost_exponent else ""

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "ST3Pruner":
        """Nothing is kept between steps. Raises `UserError` where `min_density` keeps more than the schedule."""
        self.check_room(weights, schedule)
        theta = self.theta_for(schedule.value(sys.maxsize))
        straight = theta == 1 and self.gradient == self.dead_channels == "straight_through"
        return ST3Pruner(self) if straight else RoutedST3Pruner(self, theta)

    def theta_for(self, final: float) -> float:
        """θ at a final sparsity."""
        return self.theta if self.theta is not None else 1.0 if final <= 0.95 else 0.5


@dataclass(frozen=True, kw_only=True)
class ST3Sigma(ST3):
    """ST-3σ (arXiv:2212.01076): ST-3 with |w| measured in units of σ_l = 1/√(sum of the weight's dimensions) of its
    layer.
    """

    name: ClassVar[str] = "st3_sigma"

    layer_sigma: bool = True


@dataclass(frozen=True, kw_only=True)
class HardSTE(ST3):
    """Hard thresholding with straight-through gradients: as DNW (arXiv:1906.00586), but with one global threshold along
    the ramp."""

    name: ClassVar[str] = "hard_ste"

    shrink: Literal["soft", "hard"] = "hard"
    rescale: bool = False


class ST3Pruner(Pruner):
    def __init__(self, method: ST3):
        self.method = method
        self._costs: Costs | None = None
        self._cost_scales: list[float] | None = None

    def weigh(self, costs: Costs) -> None:
        self._costs = costs

    def scale_by(self, costs: Sequence[float]) -> None:
        self._cost_scales = cost_scales(costs, self.method.cost_exponent)

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        method = self.method
        fused = self._costs is None and method.exponent == 1 and not method.min_density
        if fused and (kernels := kernels_for(raw, out, self._scales(raw))):
            plain = partial(self.project_plainly, raw, sparsity)
            return kernels.project(sparsity, soft=method.shrink == "soft", rescale=method.rescale, plain=plain)
        return self.project_plainly(raw, sparsity, out)

    def _scales(self, raw: FlatWeights) -> list[float]:
        """Of each layer: what its magnitudes are measured in when they are compared over the layers."""
        scales = [sigma(w.shape) if self.method.layer_sigma else 1.0 for w in raw.layers]
        if self._cost_scales is None:
            return scales
        return [scale * of_cost for scale, of_cost in zip(scales, self._cost_scales, strict=True)]

    def project_plainly(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        """`project` in plain PyTorch, layer by layer."""
        method, scales = self.method, self._scales(raw)
        magnitudes, scaling = raw.flat.abs(), any(scale != 1 for scale in scales)
        if scaling:
            torch._foreach_mul_(raw.parts(magnitudes), [1 / scale for scale in scales])
        thresholds = layer_thresholds(
            magnitudes, raw.sizes, sparsity, min_density=method.min_density, costs=self._costs
        )
        for weight, target, scale, tau in zip(raw.layers, out, scales, thresholds, strict=True):
            # Thresholding w/s_l by τ is thresholding w by τ·s_l; doing it on w/s_l makes the counts immune to rounding.
            scaled = weight * (1 / scale) if scaling else weight
            shrunk = self._shrink(scaled, tau)
            if scaling:
                shrunk *= scale
            factor = rescale_factor(weight, scaled.abs() > tau) if method.rescale else 1
            torch.mul(shrunk, factor, out=target)
        return torch.stack([tau * scale for tau, scale in zip(thresholds, scales, strict=True)])

    def _shrink(self, weight: Tensor, threshold: Tensor) -> Tensor:
        if self.method.shrink == "hard":
            return hard_threshold(weight, threshold)
        if self.method.exponent == 1:
            return soft_threshold(weight, threshold)
        return power_threshold(weight, threshold, self.method.exponent)


class RoutedST3Pruner(ST3Pruner):
    """The gradient is not that of the sparse weights everywhere."""

    def __init__(self, method: ST3, theta: float):
        super().__init__(method)
        self._theta = theta

    def route(self, layer: int, weight: Tensor, raw: Tensor, gradient: Tensor, step: int) -> Tensor:
        kept = weight != 0
        if self.method.gradient == "rescaled":
            gradient = gradient * rescale_factor(raw, kept)
        if self._theta != 1:
            gradient = torch.where(kept, gradient, gradient * self._theta)
        if self.method.dead_channels == "masked":
            gradient = gradient * kept.flatten(1).any(1).view(-1, *[1] * (weight.ndim - 1))
        return gradient
