"""Weights of many layers side by side in one buffer, so that one operation reaches them all."""

from collections.abc import Sequence

import torch
from torch import Tensor


class FlatWeights:
    """Weights shaped and strided like `weights` (one dtype, one device), uninitialized, one after the other in memory.

    `flat` [N] holds them all; `layers` are its views, one for each of `weights`. A layer's weights stand in `flat` in
    the order in which they lie in memory, which is not the logical order where they are channels_last.
    """

    def __init__(self, weights: Sequence[Tensor]):
        self.sizes = [w.numel() for w in weights]
        first = weights[0]
        self.flat = torch.empty(sum(self.sizes), dtype=first.dtype, device=first.device)
        # Strides as empty_like gives them: those of the weight unless it has gaps.
        strides = [torch.empty_like(w, device="meta").stride() for w in weights]
        self.layers = [
            part.as_strided(w.shape, stride)
            for part, w, stride in zip(self.flat.split(self.sizes), weights, strides, strict=True)
        ]

    @classmethod
    def copy_of(cls, weights: Sequence[Tensor]) -> "FlatWeights":
        """The values of `weights`, copied."""
        copy = cls(weights)
        copy.copy_(weights)
        return copy

    def copy_(self, weights: Sequence[Tensor]) -> None:
        """Take over the values of `weights`, in one launch on CUDA."""
        torch._foreach_copy_(self.layers, list(weights))

    def fits(self, weights: Sequence[Tensor]) -> bool:
        """Whether `weights` are still of this device, dtype and layout."""
        return all(
            (mine.device, mine.dtype, mine.stride()) == (w.device, w.dtype, torch.empty_like(w, device="meta").stride())
            for mine, w in zip(self.layers, weights, strict=True)
        )

    def parts(self, flat: Tensor) -> tuple[Tensor, ...]:
        """`flat` [N] (magnitudes, say) cut into the layers, each 1-d."""
        return flat.split(self.sizes)
