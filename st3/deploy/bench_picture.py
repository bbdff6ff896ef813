"""The picture of a benchmark: a bar for each runtime, dense and sparse; and what each layer takes in MNN."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from st3.deploy.benchmark import Batch, Benchmark
from st3.deploy.layer_times import LayerTime
from st3.whole_files import save_picture

GREY, BLUE, ORANGE = "#999999", "#0072B2", "#D55E00"


def draw_benchmark(found: Benchmark, path: Path) -> None:
    """Write a PNG."""
    count = len(found.batches) + bool(found.layers)
    figure = Figure(figsize=(5.2 * count, 4.6), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    threads = "1 thread" if found.threads == 1 else f"{found.threads} threads"
    figure.suptitle(f"{found.model}, {100 * found.sparsity:.1f} % zeros, {threads} of {found.device}", fontsize=11)
    for axis, batch in zip(axes, found.batches, strict=False):
        _bars(axis, batch)
    if found.layers:
        _layers(axes[-1], found.layers)
    save_picture(path, figure)


def _bars(axes: Any, batch: Batch) -> None:
    runtimes = list(dict.fromkeys(each.runtime for each in batch.timings))
    for each in batch.timings:
        ms = batch.ms(each)
        place = runtimes.index(each.runtime) + (0.2 if each.kind == "sparse" else -0.2)
        colour = GREY if each.kind == "dense" else ORANGE if each.uses_zeros else BLUE
        spread = [[ms["median"] - ms["q1"]], [ms["q3"] - ms["median"]]]
        axes.barh(place, ms["median"], 0.38, color=colour, xerr=spread, error_kw={"linewidth": 1})
        axes.text(ms["q3"], place, f" {ms['median']:.3g}", va="center", fontsize=8)
    dense = batch.fastest("dense")
    if dense:
        axes.axvline(batch.ms(dense)["median"], color="black", linewidth=1, linestyle="--")
    axes.set_yticks(range(len(runtimes)), runtimes)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set(
        title="1 image" if batch.size == 1 else f"{batch.size} images",
        xlabel=f"{'process' if batch.clock == 'cpu_ms' else 'wall'} time (ms), dashed: fastest dense one\n"
        "grey: dense; blue: sparse, zeros not used; orange: used",
    )
    axes.spines[["top", "right"]].set_visible(False)


def _layers(axes: Any, layers: tuple[LayerTime, ...]) -> None:
    places = range(len(layers))
    axes.plot([each.dense_ms for each in layers], places, ".", color=GREY, label="dense kernels")
    axes.plot([each.sparse_ms for each in layers], places, ".", color=ORANGE, label="sparse kernels")
    axes.hlines(
        places, [each.dense_ms for each in layers], [each.sparse_ms for each in layers], color="#cccccc", linewidth=1
    )
    every = -(-len(layers) // 24)
    axes.set_yticks(places[::every], [each.layer for each in layers[::every]], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(left=0)
    axes.set(title="each layer in MNN", xlabel="process time (ms)")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
