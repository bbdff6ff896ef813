"""The columns of the metrics that describe the sparse network."""

import math
from collections.abc import Mapping

import torch

from st3.sparsify import Sparsifier


class SparsityMeter:
    """Scheduled and exact sparsity, threshold (mean over the layers), remaining MACs and the number of layers without a
    weight, in one read from the device.

    `macs` are the dense MACs of each layer, as `layer_macs` gives them.
    """

    def __init__(self, sparsifier: Sparsifier, macs: Mapping[str, int]):
        self._sparsifier = sparsifier
        pruned = [layer for layer in sparsifier.layers() if layer.pruned]
        self._layers = [(macs[layer.name], math.prod(layer.shape)) for layer in pruned]
        self._dense = sum(macs.values())

    def __call__(self) -> dict[str, float]:
        sparsifier = self._sparsifier
        zeros, thresholds = sparsifier.zeros(), sparsifier.thresholds()
        values = torch.stack([zeros.double(), thresholds.double()]).tolist()
        counts = [int(zero) for zero in values[0]]
        saved = (dense * count // size for count, (dense, size) in zip(counts, self._layers, strict=True))
        return {
            "sparsity_scheduled": sparsifier.sparsity,
            "sparsity": sum(counts) / sparsifier.prunable,
            "threshold": sum(values[1]) / len(counts),
            "macs": self._dense - sum(saved),
            "dead_layers": sum(count == size for count, (_, size) in zip(counts, self._layers, strict=True)),
        }
