"""The table of layers: what is pruned, how many zeros, what it costs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from st3.sparsify import LayerState


@dataclass(frozen=True)
class LayerRow:
    """One layer of `weight_layers`; MACs follow the convention of `st3.measure.macs`."""

    name: str
    shape: str
    """Weight shape, as in 64×3×7×7."""
    params: int
    """Number of weights, without bias."""
    pruned: bool
    zeros: int
    sparsity: float
    """zeros / params."""
    threshold: float
    macs_dense: int
    macs: int
    """MACs of the weights that are not zero, each at the layer's mean (in cross-attention they differ)."""
    dead: bool
    """Whether it has been pruned to nothing: all weights are zero."""


@dataclass(frozen=True)
class Totals:
    """Sums over the whole model."""

    prunable: int
    """Weights of the pruned layers."""
    zeros: int
    """Zeros in the pruned layers."""
    macs_dense: int
    macs: int
    """Both over all layers, pruned or not."""

    @property
    def sparsity(self) -> float:
        return self.zeros / self.prunable


def layer_table(layers: Sequence[LayerState], macs: Mapping[str, int]) -> list[LayerRow]:
    """Rows for `Sparsifier.layers()` with the dense MACs of `layer_macs`."""
    rows = []
    for layer in layers:
        params, dense = math.prod(layer.shape), macs[layer.name]
        rows.append(
            LayerRow(
                name=layer.name,
                shape="×".join(map(str, layer.shape)),
                params=params,
                pruned=layer.pruned,
                zeros=layer.zeros,
                sparsity=layer.zeros / params,
                threshold=layer.threshold,
                macs_dense=dense,
                macs=dense - dense * layer.zeros // params,
                dead=layer.pruned and layer.zeros == params,
            )
        )
    return rows


def totals(rows: Sequence[LayerRow]) -> Totals:
    """Sum the table."""
    pruned = [row for row in rows if row.pruned]
    return Totals(
        prunable=sum(row.params for row in pruned),
        zeros=sum(row.zeros for row in pruned),
        macs_dense=sum(row.macs_dense for row in rows),
        macs=sum(row.macs for row in rows),
    )


def format_table(rows: Sequence[LayerRow]) -> str:
    """The table as aligned text with a line of totals."""
    total = totals(rows)
    lines = [("layer", "shape", "weights", "pruned", "zeros", "sparsity", "MACs dense", "MACs")]
    for row in rows:
        lines.append(
            (
                row.name,
                row.shape,
                f"{row.params:,}",
                "yes" if row.pruned else "no",
                f"{row.zeros:,}",
                f"{row.sparsity:.2%}",
                f"{row.macs_dense:,}",
                f"{row.macs:,}",
            )
        )
    lines.append(
        (
            "total",
            "",
            f"{sum(row.params for row in rows):,}",
            f"{sum(row.pruned for row in rows)} of {len(rows)}",
            f"{total.zeros:,}",
            f"{total.sparsity:.2%}",
            f"{total.macs_dense:,}",
            f"{total.macs:,}",
        )
    )
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    left = {0, 1}
    return "\n".join(
        "  ".join(
            cell.ljust(w) if i in left else cell.rjust(w) for i, (cell, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
