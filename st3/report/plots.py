"""The plots of a table, from its results alone: measured points filled, published ones hollow.

Each function draws one figure, or returns None where there is nothing to draw.
"""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import FuncNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

from st3.report.results import Result, Results, Run
from st3.report.style import BLACK, styles
from st3.report.table import Published, Row

TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
LEGEND_COLUMNS = 4
FILLED, HOLLOW = 6, 9
"""Sizes of the markers. Published points are larger, to be seen around a measured one at the same place."""


def accuracy_over_sparsity(results: Results) -> Figure | None:
    """Top-1 over sparsity, on a scale that gives the high sparsities room; the dense network is a horizontal line.

    Where the table has one sparsity only, its rows stand below each other instead.
    """
    sparse = [result for result in results.rows if result.row.sparsity]
    if not sparse:
        return None
    if len({result.row.sparsity for result in sparse}) == 1:
        return _accuracy_by_row(results)
    look = styles(series.label for series in results.table.series)
    figure, axes = _axes()
    for result in results.rows:
        if not result.row.sparsity:
            colour, _ = look[result.row.label]
            if result.row.published:
                axes.axhline(result.row.published.top1, color=colour, linestyle=":", linewidth=1.5)
            if result.runs:
                axes.axhline(result.top1.mean, color=colour, linewidth=1.5)
    _lines(
        axes,
        sparse,
        look,
        measured=lambda result: float(nines(result.sparsity.mean)),
        published=lambda row, _: float(nines(row.sparsity)),
    )
    low, high = axes.get_xlim()
    ticks = [tick for tick in TICKS if low <= nines(tick) <= high]
    axes.xaxis.set_major_locator(FixedLocator(nines(ticks).tolist()))
    axes.xaxis.set_major_formatter(
        FuncFormatter(lambda _, place: f"{100 * ticks[place]:g}" if place is not None else "")
    )
    axes.set(xlabel="sparsity (% of the prunable weights)", ylabel="top-1 accuracy (%)", title=results.table.title)
    _legend(figure, results, results.rows, dense_is_a_line=True)
    return figure


def accuracy_over_macs(results: Results) -> Figure | None:
    """Top-1 over multiply-accumulates, logarithmic; published figures whose MACs are not known are left out."""
    counted = [r for r in results.rows if r.runs or (r.row.published and r.row.published.macs_millions)]
    if not counted:
        return None
    figure, axes = _axes()
    axes.set_xscale("log")
    _lines(
        axes,
        counted,
        styles(series.label for series in results.table.series),
        measured=lambda result: result.macs_millions.mean,
        published=lambda _, figures: figures.macs_millions,
    )
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda macs, _: f"{macs:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set(xlabel="million MACs an image", ylabel="top-1 accuracy (%)", title=results.table.title)
    _legend(figure, results, counted)
    return figure


def layer_sparsity(results: Results) -> Figure | None:
    """A map of rows × layers: the mean sparsity of each layer over the seeds; layers that are not pruned are grey."""
    measured = [result for result in results.measured if result.row.sparsity]
    if not measured:
        return None
    names = list(dict.fromkeys(layer["name"] for result in measured for layer in result.runs[0].layers))
    values = np.array([[_layer(result.runs, name) for name in names] for result in measured])
    height = 1.1 + 0.105 * max(map(len, names)) + 0.24 * len(measured)
    figure = Figure(figsize=(max(7.5, 3.2 + 0.2 * len(names)), height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#D0D0D0")
    norm = FuncNorm((nines, lambda scaled: 1 - 10.0 ** -np.asarray(scaled)), vmin=0, vmax=0.999, clip=True)
    image = axes.imshow(values, norm=norm, cmap="cividis", aspect="auto", interpolation="none")
    bar = figure.colorbar(image, ax=axes, ticks=TICKS, pad=0.01, fraction=0.04)
    bar.ax.set_yticklabels([f"{100 * tick:g}" for tick in TICKS], fontsize=8)
    bar.minorticks_off()
    bar.set_label("zero weights (%)", fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=7)
    axes.set_yticks(range(len(measured)), [result.row.name for result in measured], fontsize=8)
    for place in range(1, len(measured)):
        if measured[place].row.label != measured[place - 1].row.label:
            axes.axhline(place - 0.5, color="white", linewidth=2.5)
    axes.set_title("Sparsity of each layer, input to output", fontsize=11)
    return figure


def training_curves(results: Results) -> Figure | None:
    """A panel for each series: test accuracy of every run over training, and the sparsity as it rises."""
    groups = {
        series.label: [result for result in results.measured if result.row.label == series.label]
        for series in results.table.series
    }
    groups = {label: group for label, group in groups.items() if group}
    if not groups:
        return None
    look = styles(series.label for series in results.table.series)
    columns = min(3, len(groups))
    lines = -(-len(groups) // columns)
    figure = Figure(figsize=(max(5, 3.6 * columns), 0.6 + 2.7 * lines), layout="constrained")
    panels = list(figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat)
    for number, (axes, (label, group)) in enumerate(zip(panels, groups.items(), strict=False)):
        ramp = axes.twinx()
        last_of_line = (number + 1) % columns == 0 or number == len(groups) - 1
        for place, result in enumerate(group):
            colour = _shade(look[label][0], (place + 1) / len(group))
            for run in result.runs:
                name = f"{100 * result.row.sparsity:g} %" if run is result.runs[0] else None
                epochs, top1 = _series(run, "test_top1")
                marker = "o" if len(epochs) < 3 else None  # a line needs points
                axes.plot(epochs, top1, color=colour, linewidth=1.2, marker=marker, markersize=4, label=name)
            if result.row.sparsity:
                epochs, sparsity = _series(result.runs[0], "sparsity")
                ramp.plot(epochs, [100 * s for s in sparsity], color=colour, linewidth=0.9, linestyle=(0, (1, 1.5)))
        ramp.set_ylim(0, 103)
        ramp.tick_params(labelsize=7, right=last_of_line, labelright=last_of_line)
        if last_of_line:
            ramp.set_ylabel("sparsity (%), dotted", fontsize=8)
        axes.set_zorder(ramp.get_zorder() + 1)
        axes.patch.set_visible(False)
        axes.set_title(label, fontsize=10)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=7, labelbottom=number >= len(groups) - columns)
        if any(result.row.sparsity for result in group):
            axes.legend(fontsize=7, loc="lower right", framealpha=0.8, handlelength=1.2)
        if number % columns == 0:
            axes.set_ylabel("test top-1 (%), solid", fontsize=8)
    for axes in panels[len(groups) :]:
        axes.set_visible(False)
    figure.supxlabel("epoch", fontsize=9)
    return figure


def nines(sparsity: ArrayLike) -> np.ndarray:
    """−log₁₀ of the density: 0 for 0, 1 for 90 %, 2 for 99 %; the scale on which sparsities are drawn."""
    return -np.log10(np.maximum(1 - np.asarray(sparsity), 1e-4))


def _accuracy_by_row(results: Results) -> Figure:
    look = styles(series.label for series in results.table.series)
    figure = Figure(figsize=(7.5, 1.4 + 0.38 * len(results.rows)), layout="constrained")
    axes = figure.subplots()
    for place, result in enumerate(results.rows):
        colour, marker = look[result.row.label]
        if result.row.published:
            axes.plot(
                result.row.published.top1, place, marker, color=colour, markerfacecolor="white", markersize=HOLLOW
            )
        if result.runs:
            axes.errorbar(
                result.top1.mean,
                place,
                xerr=result.top1.half_width,
                fmt=marker,
                color=colour,
                markersize=FILLED,
                capsize=3,
            )
    sparsity = max(result.row.sparsity for result in results.rows)
    axes.set_yticks(range(len(results.rows)), [result.row.label for result in results.rows])
    axes.set_ylim(len(results.rows) - 0.5, -0.5)
    axes.grid(alpha=0.25)
    axes.set(xlabel=f"top-1 accuracy (%) at {100 * sparsity:g} % sparsity", title=results.table.title)
    return figure


def _axes() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(7.5, 5.6), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.25)
    return figure, axes


def _lines(
    axes: Axes,
    rows: Sequence[Result],
    look: dict[str, tuple[str, str]],
    *,
    measured: Callable[[Result], float],
    published: Callable[[Row, Published], float | None],
) -> None:
    """A line through the measured and one through the published points of each series; `measured` and `published`
    say where on the horizontal axis a point lies, None for nowhere."""
    for label in dict.fromkeys(result.row.label for result in rows):
        colour, marker = look[label]
        group = [result for result in rows if result.row.label == label]
        figures = [(published(r.row, r.row.published), r.row.published.top1) for r in group if r.row.published]
        if points := [point for point in figures if point[0] is not None]:
            axes.plot(
                *zip(*points, strict=True), marker, color=colour, linestyle=":", linewidth=1, markerfacecolor="white",
                markersize=HOLLOW,
            )  # fmt: skip
        if done := [result for result in group if result.runs]:
            axes.errorbar(
                [measured(result) for result in done],
                [result.top1.mean for result in done],
                yerr=[result.top1.half_width or 0 for result in done] if any(r.top1.n > 1 for r in done) else None,
                marker=marker,
                color=colour,
                markersize=FILLED,
                linewidth=1.3,
                capsize=3,
            )


def _legend(figure: Figure, results: Results, rows: Sequence[Result], dense_is_a_line: bool = False) -> None:
    look = styles(series.label for series in results.table.series)
    handles = []
    for label in dict.fromkeys(result.row.label for result in rows):
        colour, marker = look[label]
        group = [result for result in rows if result.row.label == label]
        if dense_is_a_line and not any(result.row.sparsity for result in group):
            handles.append(Line2D([], [], color=colour, label=label))
            continue
        fill = colour if any(result.runs for result in group) else "white"
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="", markerfacecolor=fill, label=label))
    if any(result.runs for result in rows):
        handles.append(Line2D([], [], color=BLACK, marker="o", label="measured"))
    if any(result.row.published for result in rows):
        handles.append(
            Line2D([], [], color=BLACK, marker="o", linestyle=":", markerfacecolor="white", label="published")
        )
    figure.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS, fontsize=9, frameon=False)


def _layer(runs: Sequence[Run], name: str) -> float:
    """Mean sparsity of a layer; NaN where it is not pruned, or not there."""
    found = [layer for run in runs for layer in run.layers if layer["name"] == name and layer["pruned"] == "True"]
    return float(np.mean([float(layer["sparsity"]) for layer in found])) if found else np.nan


def _series(run: Run, column: str) -> tuple[list[float], list[float]]:
    """The epochs at which a column of the metrics has values, and these values."""
    steps_per_epoch = run.summary.steps / run.summary.epochs
    rows = [row for row in run.metrics if row[column]]
    return [float(row["step"]) / steps_per_epoch for row in rows], [float(row[column]) for row in rows]


def _shade(colour: str, strength: float) -> tuple[float, ...]:
    """The colour mixed with white: the lower `strength` in [0, 1], the paler, but never too pale to be seen."""
    strength = 0.3 + 0.7 * strength
    return tuple(1 - strength * (1 - part) for part in to_rgb(colour))
