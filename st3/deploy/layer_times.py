"""How long each layer of a network takes in MNN, with dense kernels and with sparse ones, at several densities."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from st3.deploy.formats.mnn import convert
from st3.deploy.formats.mnn_clock import operation_times
from st3.deploy.formats.mnn_file import sparse_layers
from st3.deploy.runtimes import Files, edit_weights
from st3.sparsify import LayerTimes

DENSITIES = 0.35, 0.25, 0.15, 0.08, 0.03
"""Of the random masks with which sparse kernels are timed: MNN has them for layers of more than 60 % zeros."""


@dataclass(frozen=True)
class LayerTime:
    """Process time in milliseconds of one layer, for a batch."""

    layer: str
    weights: int
    zeros: int
    dense_ms: float
    sparse_ms: float
    """As the network is, in the file with sparse kernels."""
    base_ms: float
    """Of the line through the times of sparse kernels at several densities: for no weight,"""
    ms_per_weight: float
    """and for each weight that is not zero."""
    has_sparse_kernel: bool
    """Whether the network, as it is, has a sparse kernel in this layer."""

    @property
    def break_even(self) -> float:
        """The sparsity above which the sparse kernel is faster than the dense one; 1 where it never is."""
        gain = self.dense_ms - self.base_ms
        if gain <= 0:
            return 1.0
        return max(0.0, 1 - gain / self.ms_per_weight / self.weights) if self.ms_per_weight > 0 else 0.0

    def times(self) -> LayerTimes:
        """As a file of times has it."""
        return LayerTimes(
            weights=self.weights, dense_ms=self.dense_ms, base_ms=self.base_ms, ms_per_weight=self.ms_per_weight
        )


def layer_times(
    files: Files, layers: Mapping[str, tuple[int, int]], pixels: NDArray[np.float32], threads: int, rounds: int
) -> list[LayerTime]:
    """Of each of `layers` (name → weights, zeros) for a batch of `pixels` [B, C, H, W].

    A layer that MNN does not compute by itself, because it is merged into another, is left out.
    """
    assert files.dense_mnn
    assert files.sparse_mnn
    paths = {"dense": files.dense_mnn, "sparse": files.sparse_mnn}
    with tempfile.TemporaryDirectory() as folder:
        for density in DENSITIES:
            source, made = Path(folder, "masked.onnx"), Path(folder, f"{density}.mnn")
            edit_weights(files.dense_onnx, source, _masked(density))
            convert(source, made)
            paths[str(density)] = made
        medians = operation_times(paths, pixels, threads, rounds)
        can_be_sparse = sparse_layers(paths[str(DENSITIES[-1])])

    found, sparse_kernels = [], sparse_layers(files.sparse_mnn)
    for layer, (weights, zeros) in layers.items():
        op = _op(layer, medians["dense"], last=layer == list(layers)[-1])
        if op is None or any(op not in each for each in medians.values()):
            continue
        kept = [max(1, round(density * weights)) for density in DENSITIES]
        slope, base = np.polyfit(kept, [medians[str(density)][op] for density in DENSITIES], 1)
        dense, sparse = medians["dense"][op], medians["sparse"][op]
        if op not in can_be_sparse:  # grouped convolutions have dense kernels only
            slope, base = 0.0, dense
        line = max(0.0, float(base)), max(0.0, float(slope))
        found.append(LayerTime(layer, weights, zeros, dense, sparse, *line, op in sparse_kernels))
    return found


def _masked(density: float) -> Callable[[NDArray], NDArray]:
    def mask(values: NDArray) -> NDArray:
        keep = np.random.default_rng(0).permutation(values.size) < max(1, round(density * values.size))
        return np.where(keep.reshape(values.shape), values, 0).astype(values.dtype)

    return mask


def _op(layer: str, names: Mapping[str, float], last: bool) -> str | None:
    """What MNN calls a layer: as its output, with an ending where it was a matrix product."""
    outputs = (layer, "logits") if last else (layer,)
    return next((name for each in outputs for name in (each, f"{each}__matmul_converted") if name in names), None)
