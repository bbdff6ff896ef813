"""ST-3, its σ variant and its ablations (Vanderschueren & De Vleeschouwer 2023, arXiv:2212.01076)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from st3.durations import Length
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.kernels import kernels_for
from st3.sparsify.method import Method, Pruner
from st3.sparsify.projections import hard_threshold, rescale_factor, sigma, soft_threshold
from st3.sparsify.schedules import Schedule
from st3.sparsify.thresholds import quantile, weighted_quantile


@dataclass(frozen=True, kw_only=True)
class ST3(Method):
    """ST-3 (arXiv:2212.01076) and its ablations: soft thresholding with straight-through gradients.

    One global threshold, the scheduled quantile of all magnitudes; weights are shrunk by it and each output channel
    is rescaled; the gradient reaches every raw weight.
    """

    name: ClassVar[str] = "st3"

    shrink: Literal["soft", "hard"] = "soft"
    """Soft thresholding, or keep magnitudes as they are ("hard": weights jump when they cross the threshold)."""
    rescale: bool = True
    """Restore each output channel's mean magnitude by κ."""
    gradient: Literal["straight_through", "masked"] = "straight_through"
    """Gradient for every raw weight, or only for those that are not zeroed."""
    layer_sigma: bool = False
    """ST-3σ: compare |w|/σ_l instead of |w| over the layers, which spreads the zeros more evenly."""

    def start(self, weights: Sequence[Tensor], schedule: Schedule, length: Length | None) -> "ST3Pruner":
        """Nothing is kept between steps."""
        return ST3Pruner(self) if self.gradient == "straight_through" else MaskedST3Pruner(self)


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
        self.shrink, self.rescale, self.layer_sigma = method.shrink, method.rescale, method.layer_sigma
        self._costs: Tensor | None = None

    def weigh(self, costs: Tensor) -> None:
        self._costs = costs

    def project(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        if self._costs is None and (kernels := kernels_for(raw, out, self._scales(raw))):
            plain = partial(self.project_plainly, raw, sparsity)
            return kernels.project(sparsity, soft=self.shrink == "soft", rescale=self.rescale, plain=plain)
        return self.project_plainly(raw, sparsity, out)

    def _scales(self, raw: FlatWeights) -> list[float]:
        return [sigma(w.shape) if self.layer_sigma else 1.0 for w in raw.layers]

    def project_plainly(self, raw: FlatWeights, sparsity: Tensor, out: Sequence[Tensor]) -> Tensor:
        """`project` in plain PyTorch, layer by layer."""
        scales = self._scales(raw)
        magnitudes = raw.flat.abs()
        if self.layer_sigma:
            torch._foreach_mul_(raw.parts(magnitudes), [1 / scale for scale in scales])
        if self._costs is None:
            threshold = quantile(magnitudes, sparsity)
        else:
            costs = self._costs.to(magnitudes.device)  # the model may have been moved since
            of_each = torch.cat([cost.expand(size) for cost, size in zip(costs, raw.sizes, strict=True)])
            threshold = weighted_quantile(magnitudes, of_each, sparsity)
        shrink = soft_threshold if self.shrink == "soft" else hard_threshold
        for weight, target, scale in zip(raw.layers, out, scales, strict=True):
            # Thresholding w/σ_l by τ is thresholding w by τ·σ_l; doing it on w/σ_l makes the counts immune to rounding.
            scaled = weight * (1 / scale) if self.layer_sigma else weight
            shrunk = shrink(scaled, threshold)
            if self.layer_sigma:
                shrunk *= scale
            factor = rescale_factor(weight, scaled.abs() > threshold) if self.rescale else 1
            torch.mul(shrunk, factor, out=target)
        return torch.stack([threshold * scale for scale in scales])


class MaskedST3Pruner(ST3Pruner):
    def route(self, layer: int, weight: Tensor, gradient: Tensor, step: int) -> Tensor:
        return gradient * (weight != 0)
