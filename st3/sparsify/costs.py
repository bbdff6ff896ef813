"""What weights cost: how much of it is removed with the smallest weights of each layer, and what a layer's time is.

A sparse kernel skips zeros, but does more for each weight that is left than a dense one. So a layer gains nothing
before it has lost so many weights that the sparse kernel is the faster one, and from there on with each weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from st3.errors import UserError

FEMTOSECONDS = 10**12
"""In a millisecond.

Times are added up as whole numbers, since sums of floats depend on their order, and a sum over millions of weights must
be exact to one of them. A weight of a fast layer costs some hundred thousand femtoseconds, so that rounding them
changes nothing that could be measured, and int64 holds 9,200 seconds.
"""
LONGEST = 1e5
"""Milliseconds of a layer that are believed; sums of more would not fit."""


@dataclass(frozen=True, kw_only=True)
class LayerTimes:
    """Time of one layer, fitted to what was measured: `t(n) = min(dense_ms, base_ms + ms_per_weight·n)` with n weights
    that are not zero. A sparse kernel pays below n* = (dense_ms − base_ms)/ms_per_weight.

    Raises `UserError` for numbers that cannot be times.
    """

    weights: int
    """Of the layer, zeros included."""
    dense_ms: float
    """With the dense kernel."""
    base_ms: float
    """With the sparse kernel, where all weights are zero."""
    ms_per_weight: float
    """With the sparse kernel, for each weight that is not zero."""

    def __post_init__(self) -> None:
        if self.weights < 1:
            raise UserError(f"weights={self.weights} must be at least 1")
        whole = self.ms_per_weight * self.weights
        for name, ms in (("dense_ms", self.dense_ms), ("base_ms", self.base_ms), ("ms_per_weight", whole)):
            if not 0 <= ms <= LONGEST:
                raise UserError(f"{name}={getattr(self, name)} cannot be: times of a layer are 0 to {LONGEST:g} ms")

    def ms(self, remaining: int) -> float:
        """Modelled milliseconds with so many weights that are not zero."""
        return min(self.dense_ms, self.base_ms + self.ms_per_weight * remaining)


@dataclass(frozen=True, kw_only=True)
class LayerCosts:
    """What removing the `z` smallest weights of a layer saves: `max(0, each·z − lag)`."""

    size: int
    """Weights of the layer."""
    each: int
    lag: int = 0
    """What must be removed before anything is saved; below zero: the sparse kernel is faster with all weights."""
    dense: int
    """What the layer costs with all weights."""

    @classmethod
    def of_macs(cls, macs: int, size: int) -> "LayerCosts":
        """MACs: a zero is free from the first one on. `macs` is a multiple of `size`, but in cross-attention."""
        each = macs // size
        return cls(size=size, each=each, dense=each * size)

    @classmethod
    def of_times(cls, times: LayerTimes) -> "LayerCosts":
        """Femtoseconds."""
        dense, base, each = (round(ms * FEMTOSECONDS) for ms in (times.dense_ms, times.base_ms, times.ms_per_weight))
        return cls(size=times.weights, each=each, lag=each * times.weights - (dense - base), dense=dense)

    def saved(self, zeros: int) -> int:
        return max(0, self.each * zeros - self.lag)

    def of_ranks(self, magnitudes: Tensor) -> Tensor:
        """What each weight saves once all smaller ones are removed, int64, shaped like `magnitudes` [size].

        Equal magnitudes have any order. Never waits for the device.
        """
        assert len(magnitudes) == self.size
        if self.lag <= 0 or self.lag >= self.each * self.size:  # all alike: whole, or nothing
            return torch.full_like(magnitudes, self.each if self.lag <= 0 else 0, dtype=torch.int64)
        removed = torch.arange(1, self.size + 1, device=magnitudes.device)
        by_rank = (self.each * removed - self.lag).clamp(0, self.each)
        return torch.empty_like(by_rank).scatter_(0, magnitudes.argsort(), by_rank)


class Costs:
    """What sparsity is a fraction of, where it does not count weights: of the costs of the `layers` together.

    `target` is what it is called: flops or latency. Raises `UserError` where removing weights saves nothing.
    """

    def __init__(self, target: str, layers: Sequence[LayerCosts]):
        self.target, self.layers = target, layers
        self._dense = sum(layer.dense for layer in layers)
        self._given = sum(layer.saved(0) for layer in layers)
        self._removable = sum(layer.saved(layer.size) for layer in layers) - self._given
        if self._removable == 0:
            raise UserError(f"target={target} has nothing to remove: in no pruned layer a sparse kernel is faster")

    def removed(self, zeros: Sequence[int]) -> float:
        """The fraction that is removed with so many weights of each layer, the smallest."""
        return sum(layer.saved(count) for layer, count in zip(self.layers, zeros, strict=True)) / self._dense

    def of_ranks(self, magnitudes: Sequence[Tensor]) -> Tensor:
        """What each weight saves once all smaller ones of its layer are removed, int64 [N]; magnitudes of each layer.

        Never waits for the device.
        """
        return torch.cat([layer.of_ranks(part) for layer, part in zip(self.layers, magnitudes, strict=True)])

    def share(self, sparsity: float | Tensor) -> float | Tensor:
        """The fraction of all that weights save by which the costs fall by `sparsity` (a number or 0-d float64)."""
        # In this order flops, which come to 1 and 0, leave sparsity as it is, to the last bit.
        share = sparsity * (self._dense / self._removable) - self._given / self._removable
        return share.clamp(min=0) if isinstance(share, Tensor) else max(share, 0.0)
