"""What a method is, and the methods by name.

A method turns raw weights into the sparse ones that the model holds, and says how the gradient travels back. It sees
neither model nor optimizer nor step; `Sparsifier` does the rest.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from st3.errors import UserError
from st3.sparsify.projections import flat_magnitudes, hard_threshold, rescale_factor, sigma, soft_threshold
from st3.sparsify.thresholds import quantile, weighted_quantile


class Method(Protocol):
    """The interface: how raw weights are projected, and whether zeroed weights receive gradient."""

    gradient: Literal["straight_through", "masked"]

    def project(
        self, raw: Sequence[Tensor], sparsity: float, costs: Tensor | None = None
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Sparse weights (shapes and dtypes of `raw`) and each layer's threshold (0-d), for 0 < sparsity < 1.

        `sparsity` is the fraction of all weights together that becomes zero; with `costs` (int64 [layers]: what one
        weight of each layer costs, for example its MACs) the fraction of the total cost.
        """


@dataclass(frozen=True, kw_only=True)
class ST3:
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

    def project(self, raw, sparsity, costs=None):
        scales = [sigma(w) if self.layer_sigma else 1.0 for w in raw]
        # Thresholding w/σ_l by τ is thresholding w by τ·σ_l; doing it on w/σ_l makes the counts immune to rounding.
        scaled = [w / scale if self.layer_sigma else w for w, scale in zip(raw, scales, strict=True)]
        magnitudes = flat_magnitudes(scaled)
        if costs is None:
            threshold = quantile(magnitudes, sparsity)
        else:
            costs = costs.to(magnitudes.device)  # the model may have been moved since
            of_each = torch.cat([cost.expand(w.numel()) for cost, w in zip(costs, raw, strict=True)])
            threshold = weighted_quantile(magnitudes, of_each, sparsity)
        shrink = soft_threshold if self.shrink == "soft" else hard_threshold
        sparse = []
        for weight, w, scale in zip(raw, scaled, scales, strict=True):
            shrunk = shrink(w, threshold)
            if self.layer_sigma:
                shrunk = shrunk * scale
            if self.rescale:
                shrunk = shrunk * rescale_factor(weight, w.abs() > threshold)
            sparse.append(shrunk)
        return sparse, [threshold * scale for scale in scales]


@dataclass(frozen=True)
class Dense:
    """No pruning: the baseline, trained by exactly the same loop."""

    gradient: ClassVar = "straight_through"

    def project(self, raw, sparsity, costs=None):
        return [w.clone() for w in raw], [w.new_zeros(()) for w in raw]


METHODS = {"st3": ST3(), "st3_sigma": ST3(layer_sigma=True), "dense": Dense()}
