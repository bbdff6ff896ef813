"""What a row of metrics says of the sparse network."""

import math
from collections.abc import Mapping

import torch

from st3.sparsify import Sparsifier


class SparsityMeter:
    """Scheduled and exact sparsity, threshold (mean over the layers) and remaining MACs, read from the device at once.

    `macs` are the dense MACs of each layer as `layer_macs` gives them.
    """

    def __init__(self, sparsifier: Sparsifier, macs: Mapping[str, int]):
        self._sparsifier = sparsifier
        pruned = [layer for layer in sparsifier.layers() if layer.pruned]
        self._per_weight = [macs[layer.name] // math.prod(layer.shape) for layer in pruned]
        self._dense = sum(macs.values())

    def __call__(self) -> dict:
        sparsifier = self._sparsifier
        zeros, thresholds = sparsifier.zeros(), sparsifier.thresholds()
        values = torch.stack([zeros.double(), thresholds.double()]).tolist()
        counts = [int(zero) for zero in values[0]]
        return {
            "sparsity_scheduled": sparsifier.sparsity,
            "sparsity": sum(counts) / sparsifier.prunable,
            "threshold": sum(values[1]) / len(counts),
            "macs": self._dense - sum(c * each for c, each in zip(counts, self._per_weight, strict=True)),
        }
