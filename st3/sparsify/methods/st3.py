"""ST-3, its σ variant and its ablations (Vanderschueren & De Vleeschouwer 2023, arXiv:2212.01076)."""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch

from st3.errors import UserError
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.kernels import kernels_for
from st3.sparsify.method import Pruner
from st3.sparsify.projections import hard_threshold, rescale_factor, sigma, soft_threshold
from st3.sparsify.thresholds import quantile, weighted_quantile


@dataclass(frozen=True, kw_only=True)
class ST3(Pruner):
    """Soft thresholding with straight-through gradients: ST-3 (arXiv:2212.01076), and its ablations.

    One global threshold, the scheduled quantile of all magnitudes; weights are shrunk by it and each output channel
    is rescaled; the gradient reaches every raw weight.
    """

    shrink: Literal["soft", "hard"] = "soft"
    """Soft thresholding, or keep magnitudes as they are ("hard": weights jump when they cross the threshold)."""
    rescale: bool = True
    """Restore each output channel's mean magnitude by κ."""
    gradient: Literal["straight_through", "masked"] = "straight_through"
    """Gradient for every raw weight, or only for those that are not zeroed."""
    layer_sigma: bool = False
    """ST-3σ: compare |w|/σ_l instead of |w| over the layers, which spreads the zeros more evenly."""

    def __post_init__(self):
        for name, allowed in (("shrink", ("soft", "hard")), ("gradient", ("straight_through", "masked"))):
            if getattr(self, name) not in allowed:
                raise UserError(f"method.{name}={getattr(self, name)} is not known: choose {' or '.join(allowed)}")

    weighs_costs = True

    def start(self, weights, schedule) -> "ST3":
        """Itself: nothing is kept between steps."""
        return self

    @property
    def routes_gradient(self) -> bool:
        return self.gradient == "masked"

    def route(self, layer, weight, gradient, step):
        return gradient * (weight != 0)

    def project(self, raw, sparsity, out, costs=None):
        if costs is None and (kernels := kernels_for(raw, out, self._scales(raw))):
            plain = partial(self._project, raw, sparsity)
            return kernels.project(sparsity, soft=self.shrink == "soft", rescale=self.rescale, plain=plain)
        return self._project(raw, sparsity, out, costs)

    def _scales(self, raw: FlatWeights) -> list[float]:
        return [sigma(w.shape) if self.layer_sigma else 1.0 for w in raw.layers]

    def _project(self, raw, sparsity, out, costs=None):
        """`project` in plain PyTorch, layer by layer."""
        scales = self._scales(raw)
        magnitudes = raw.flat.abs()
        if self.layer_sigma:
            torch._foreach_mul_(raw.parts(magnitudes), [1 / scale for scale in scales])
        if costs is None:
            threshold = quantile(magnitudes, sparsity)
        else:
            costs = costs.to(magnitudes.device)  # the model may have been moved since
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
