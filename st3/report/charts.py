"""The charts of a table, from its results alone, as plotly.js takes them: measured points filled, published hollow.

Each function makes one chart, or returns None where there is nothing to draw.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from st3.report.notes import plus_minus, signed
from st3.report.results import Contest, Result, Results, Run
from st3.report.run_charts import SPAN, Chart, accuracy_range, curve, is_dead
from st3.report.style import RED, styles
from st3.report.table import Published, Row

TICKS = (0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
FILLED, HOLLOW = 9, 12
"""Sizes of the markers. Published points are larger, to be seen around a measured one at the same place."""


def accuracy_over_sparsity(results: Results) -> Chart | None:
    """Top-1 over sparsity, on a scale that gives the high sparsities room; the dense network is a horizontal line.

    Where the table has one sparsity only, its rows stand below each other instead.
    """
    sparse = [result for result in results.rows if result.row.sparsity]
    if not sparse:
        return None
    if len({result.row.sparsity for result in sparse}) == 1:
        return _accuracy_by_row(results)
    look = styles(series.label for series in results.table.series)
    places = [nines(result.row.sparsity) for result in sparse]
    places += [nines(result.sparsity.mean) for result in sparse if result.runs]
    low, high = min(places) - 0.05, max(places) + 0.05
    traces = []
    for result in results.rows:
        if not result.row.sparsity:
            colour, _ = look[result.row.label]
            levels = [(result.top1.mean, _measured(result), "solid")] if result.runs else []
            if result.row.published:
                levels += [(result.row.published.top1, _published(result.row, result.row.published), "dot")]
            for number, (top1, text, dash) in enumerate(levels):
                line = {"color": colour, "dash": dash, "width": 2}
                ends = {"x": [low, high], "y": [top1, top1], "text": [text, text]}
                traces.append(_trace(result.row.label, number == 0, mode="lines", line=line, **ends))
    traces += _lines(
        sparse,
        look,
        measured=lambda result: nines(result.sparsity.mean),
        published=lambda row, _: nines(row.sparsity),
    )
    ticks = [tick for tick in TICKS if low <= nines(tick) <= high]
    axis: dict[str, Any] = {"range": [low, high]}
    axis |= {"tickvals": [nines(tick) for tick in ticks], "ticktext": [f"{100 * tick:g}" for tick in ticks]}
    return Chart(
        traces,
        {"xaxis": axis | _title("sparsity (% of the prunable weights)"), "yaxis": _accuracy_axis(results.rows)},
        caption=f"Top-1 accuracy and sparsity. {_marks(results)}",
    )


def accuracy_over_macs(results: Results) -> Chart | None:
    """Top-1 over multiply-accumulates, logarithmic; published figures whose MACs are not known are left out."""
    counted = [r for r in results.rows if r.runs or (r.row.published and r.row.published.macs_millions)]
    if not counted:
        return None
    traces = _lines(
        counted,
        styles(series.label for series in results.table.series),
        measured=lambda result: result.macs_millions.mean,
        published=lambda _, figures: figures.macs_millions,
    )
    places = [x for trace in traces for x in trace["x"] if x > 0]
    if not places:
        return None
    decade = [10.0**power for power in range(-4, 8)]
    ticks = [step * ten for ten in decade for step in (1, 2, 5) if min(places) <= 2 * step * ten <= 4 * max(places)]
    axis = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    left_out = any(r.row.published and not r.row.published.macs_millions for r in results.rows)
    return Chart(
        traces,
        {"xaxis": axis | _title("million MACs an image"), "yaxis": _accuracy_axis(counted)},
        caption="Top-1 accuracy and multiply-accumulates."
        + (" Published figures are shown where their MACs are known." if left_out else ""),
    )


def paired_differences(results: Results) -> list[Chart]:
    """A chart for each contest: top-1 of every row minus that of the reference over the seeds that both have, as mean,
    95 % interval, and a dot for each seed."""
    return [_differences(results, contest) for contest in results.contests]


def layer_sparsity(results: Results) -> Chart | None:
    """A map of rows × layers: the mean sparsity of each layer over the seeds; layers that are not pruned are grey, and
    those that are wholly zero in a run are crossed out."""
    measured = [r for r in results.measured if r.row.sparsity and any(run.layers for run in r.runs)]
    if not measured:
        return None
    names = list(dict.fromkeys(layer["name"] for result in measured for run in result.runs for layer in run.layers))
    rows = [result.row.name for result in measured]
    values = [[_layer(result.runs, name) for name in names] for result in measured]
    texts = [
        [
            f"{row}<br>{name}: " + ("not pruned" if value is None else f"{value:.2%}")
            for name, value in zip(names, line, strict=True)
        ]
        for row, line in zip(rows, values, strict=True)
    ]
    heat = {
        "type": "heatmap", "x": names, "y": rows, "text": texts, "hovertemplate": "%{text}<extra></extra>",
        "z": [[None if value is None else nines(value) for value in line] for line in values],
        "zmin": 0, "zmax": nines(TICKS[-1]), "colorscale": "Cividis", "showscale": True,
        "colorbar": {"tickvals": [nines(t) for t in TICKS], "ticktext": [f"{100 * t:g}" for t in TICKS],
                     "title": {"text": "zero (%)"}, "thickness": 12},
    }  # fmt: skip
    dead = [
        (layer["name"], result.row.name)
        for result in measured
        for layer in {layer["name"]: layer for run in result.runs for layer in run.layers if is_dead(layer)}.values()
    ]
    crosses = {
        "type": "scatter", "mode": "markers", "x": [x for x, _ in dead], "y": [y for _, y in dead], "showlegend": False,
        "marker": {"symbol": "x", "color": RED, "size": 8}, "hoverinfo": "skip",
    }  # fmt: skip
    few = len(names) <= 60
    layout = {
        "height": 160 + 20 * len(rows) + (7 * max(map(len, names)) if few else 0),
        "plot_bgcolor": "#d0d0d0",
        "xaxis": {"showgrid": False, "tickangle": -90, "showticklabels": few, "automargin": True, "type": "category"},
        "yaxis": {"autorange": "reversed", "showgrid": False, "automargin": True, "type": "category"},
    }
    caption = "Sparsity of each layer, input to output, mean over the seeds. Grey: not pruned."
    if dead:
        caption += " Crossed out in red: wholly zero in at least one run."
    return Chart([heat, crosses] if dead else [heat], layout, caption=caption)


def training_curves(results: Results) -> Chart | None:
    """Test accuracy of every run over training."""
    look = styles(series.label for series in results.table.series)
    traces, shown = [], set()
    for result in results.measured:
        colour, _ = look[result.row.label]
        for run in result.runs:
            epochs, top1 = curve(run, "test_top1")
            if not epochs:
                continue
            what = f"{result.row.name}, seed {run.seed}"
            text = [f"{what}<br>epoch {e:.3g}: {t:.2f} %" for e, t in zip(epochs, top1, strict=True)]
            mode = "lines" if len(epochs) > 2 else "markers"  # a line needs points
            line = {"color": colour, "width": 1.5}
            more = {"mode": mode, "line": line, "marker": {"color": colour}, "x": epochs, "y": top1, "text": text}
            traces.append(_trace(result.row.label, result.row.label not in shown, **more))
            shown.add(result.row.label)
    if not traces:
        return None
    layout = {"xaxis": _title("epoch"), "yaxis": _title("test top-1 (%)"), "height": 480}
    return Chart(traces, layout, caption="Test accuracy over training, a line for each run.")


def nines(sparsity: float) -> float:
    """−log₁₀ of the density: 0 for 0, 1 for 90 %, 2 for 99 %; the scale on which sparsities are drawn."""
    return -math.log10(max(1 - sparsity, 1e-4)) + 0.0


def _accuracy_by_row(results: Results) -> Chart:
    look = styles(series.label for series in results.table.series)
    traces = []
    for result in results.rows:
        colour, symbol = look[result.row.label]
        name, at = result.row.label, {"mode": "markers", "y": [result.row.label], "showlegend": False}
        if published := result.row.published:
            marker = {"color": colour, "symbol": f"{symbol}-open", "size": HOLLOW}
            text = [_published(result.row, published)]
            traces.append(_trace(name, False, x=[published.top1], text=text, marker=marker, **at))
        if result.runs:
            marker = {"color": colour, "symbol": symbol, "size": FILLED}
            bars = {"error_x": _bars([result.top1.half_width])}
            text = [_measured(result)]
            traces.append(_trace(name, False, x=[result.top1.mean], text=text, marker=marker, **bars, **at))
    sparsity = max(result.row.sparsity for result in results.rows)
    names = list(dict.fromkeys(result.row.label for result in results.rows))
    layout = {
        "height": 110 + 24 * len(names),
        "xaxis": _accuracy_axis(results.rows) | _title(f"top-1 (%) at {100 * sparsity:g} % sparsity"),
        "yaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": names[::-1], "automargin": True,
            "range": [-0.6, len(names) - 0.4], "tickvals": names, "ticktext": [_short(name) for name in names],
        },
    }  # fmt: skip
    return Chart(traces, layout, caption=f"Top-1 accuracy of each row. {_marks(results)}")


def _differences(results: Results, contest: Contest) -> Chart:
    """The rows below each other. The scale is that of the dots, not of the intervals, which may be very wide where
    there are two seeds: one that does not end in the picture goes on outside."""
    own = [row for row in contest.rows if row.row.label == results.table.reference]
    reference = own[0] if own else contest.best
    rows = results.comparable[contest.sparsity, contest.epochs, contest.task]
    found = [(difference, row) for row in rows if row is not reference and (difference := row.minus(reference))]
    look = styles(series.label for series in results.table.series)
    traces, drawn, names, ticks, values = [], [0.0], [], [], []
    for difference, row in sorted(found, key=lambda each: each[0].mean, reverse=True):
        colour, symbol = look[row.row.label]
        dots, name = row.differences(reference), row.row.label
        drawn += dots
        names.append(name)
        ticks.append(f"{_short(name)} (n = {difference.n})")
        values.append(plus_minus(difference, signed))
        said = f"{name} − {reference.row.label}<br>{plus_minus(difference, signed)} points, n = {difference.n}"
        seeds = [run.seed for run in row.runs if run.seed in {other.seed for other in reference.runs}]
        texts = [f"{name}, seed {seed}<br>{signed(dot)} points" for seed, dot in zip(seeds, dots, strict=True)]
        marker = {"color": colour, "size": 6, "opacity": 0.45}
        traces.append(_trace(name, False, mode="markers", x=dots, y=[name] * len(dots), text=texts, marker=marker))
        if difference.half_width is not None:
            marker = {"color": colour, "symbol": symbol, "size": FILLED}
            at = {"x": [difference.mean], "y": [name], "text": [said], "error_x": _bars([difference.half_width])}
            traces.append(_trace(name, False, mode="markers", marker=marker, **at))
    room = max(0.08 * (max(drawn) - min(drawn)), (SPAN / 2 - (max(drawn) - min(drawn))) / 2)
    title = f"minus {reference.row.label}{', the best' if reference is contest.best else ''}"
    layout = {
        "height": 130 + 26 * len(names),
        "shapes": [{"type": "line", "x0": 0, "x1": 0, "yref": "paper", "y0": 0, "y1": 1, "line": {"width": 1}}],
        "annotations": [
            {"text": value, "y": name, "xref": "paper", "x": 1.01, "xanchor": "left", "showarrow": False}
            for name, value in zip(names, values, strict=True)
        ],
        "margin": {"r": 112},
        "xaxis": {"range": [min(drawn) - room, max(drawn) + room], "zeroline": False}
        | _title("difference in top-1 (points)"),
        "yaxis": {
            "type": "category", "categoryorder": "array", "categoryarray": names[::-1], "automargin": True,
            "range": [-0.6, len(names) - 0.4], "tickvals": names, "ticktext": ticks,
        },
    }  # fmt: skip
    return Chart(
        traces,
        layout,
        title=f"{100 * contest.sparsity:g} % sparsity, {contest.epochs} epochs: {title}",
        caption=f"Top-1 {title}, in points, over the seeds that both rows have: mean, 95 % interval, and a dot for "
        "each seed. An interval that reaches 0 does not tell the two rows apart; it may go on outside the picture.",
    )


def _lines(
    rows: Sequence[Result],
    look: dict[str, tuple[str, str]],
    *,
    measured: Callable[[Result], float],
    published: Callable[[Row, Published], float | None],
) -> list[dict[str, Any]]:
    """A line through the measured and one through the published points of each series; `measured` and `published`
    say where on the horizontal axis a point lies, None for nowhere."""
    traces = []
    for label in dict.fromkeys(result.row.label for result in rows):
        colour, symbol = look[label]
        group = [result for result in rows if result.row.label == label]
        done = [result for result in group if result.runs]
        if done:
            traces.append(
                _trace(
                    label,
                    True,
                    mode="lines+markers",
                    x=[measured(result) for result in done],
                    y=[result.top1.mean for result in done],
                    text=[_measured(result) for result in done],
                    error_y=_bars([result.top1.half_width for result in done]),
                    line={"color": colour, "width": 2},
                    marker={"color": colour, "symbol": symbol, "size": FILLED},
                )
            )
        figures = [(published(r.row, r.row.published), r.row, r.row.published) for r in group if r.row.published]
        if known := [each for each in figures if each[0] is not None]:
            traces.append(
                _trace(
                    label,
                    not done,
                    mode="lines+markers",
                    x=[x for x, _, _ in known],
                    y=[figure.top1 for _, _, figure in known],
                    text=[_published(row, figure) for _, row, figure in known],
                    line={"color": colour, "width": 1, "dash": "dot"},
                    marker={"color": colour, "symbol": f"{symbol}-open", "size": HOLLOW},
                )
            )
    return traces


def _trace(label: str, in_legend: bool, **more: Any) -> dict[str, Any]:
    """One of a series, which the legend shows once and hides as a whole. `text` is what hovering shows."""
    named = {"type": "scatter", "name": _short(label), "legendgroup": label, "showlegend": in_legend}
    return named | {"hovertemplate": "%{text}<extra></extra>"} | more


def _bars(half_widths: Sequence[float | None]) -> dict[str, Any]:
    return {"type": "data", "array": [width or 0 for width in half_widths], "thickness": 1.3, "width": 3}


def _measured(result: Result) -> str:
    top1 = result.top1
    n = f"n = {top1.n}" + ("" if top1.n > 1 else ", no interval")
    what = f"{result.sparsity.mean:.2%} sparse, {result.macs_millions.mean:,.4g} M MACs"
    return f"<b>{result.row.label}</b><br>top-1 {plus_minus(top1)} % ({n})<br>{what}"


def _published(row: Row, figures: Published) -> str:
    macs = f", {figures.macs_millions:g} M MACs" if figures.macs_millions else ""
    return f"<b>{row.label}</b>, published<br>top-1 {figures.top1:.2f} %<br>{100 * row.sparsity:g} % sparse{macs}"


def _marks(results: Results) -> str:
    """What is filled, and what is hollow."""
    sizes = {result.top1.n for result in results.measured}
    said = []
    if sizes:
        said.append(
            "measured here"
            + (", with the 95 % interval" if sizes - {1} else "")
            + (" where there are several seeds" if len(sizes) > 1 and 1 in sizes else "")
            + (", one seed each: no intervals" if sizes == {1} else "")
        )
    if any(result.row.published for result in results.rows):
        return f"Filled: {said[0]}; hollow: published." if said else "Hollow: published."
    return f"{said[0][0].upper()}{said[0][1:]}." if said else ""


def _accuracy_axis(rows: Iterable[Result]) -> dict[str, Any]:
    ends = [result.row.published.top1 for result in rows if result.row.published]
    for result in rows:
        if result.runs:
            width = result.top1.half_width or 0
            ends += [max(0.0, result.top1.mean - width), min(100.0, result.top1.mean + width)]
    return {"range": accuracy_range(min(ends), max(ends))} | _title("top-1 accuracy (%)")


def _title(text: str) -> dict[str, Any]:
    return {"title": {"text": text}}


def _short(label: str) -> str:
    """For legends and axes; hovering shows all of it."""
    return label if len(label) <= 32 else f"{label[:31]}…"


def _layer(runs: Sequence[Run], name: str) -> float | None:
    """Mean sparsity of a layer; None where it is not pruned, or not there."""
    found = [layer for run in runs for layer in run.layers if layer["name"] == name and layer["pruned"] == "True"]
    return sum(float(layer["sparsity"]) for layer in found) / len(found) if found else None
