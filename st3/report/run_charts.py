"""The charts of one run, from its files alone, as plotly.js takes them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from st3.report.results import Run
from st3.report.style import BLUE, GREEN, GREY, ORANGE, RED

POINTS = 300
"""Of a curve at most; a run may have a hundred thousand steps."""
SPAN = 5.0
"""Points of top-1 that an axis shows at least: less would make noise look like a result."""
CLASSES = 100
"""Of a confusion matrix at most: a larger one would be most of the page."""


@dataclass(frozen=True)
class Chart:
    """What `Plotly.newPlot` takes, what is said above it and what below it."""

    data: list[dict[str, Any]]
    layout: dict[str, Any]
    title: str = ""
    caption: str = ""


def run_charts(run: Run) -> dict[str, Chart]:
    """Name → chart: loss and accuracy, the ramp, the layers, a confusion matrix for each evaluation that has
    one, and what the runtimes took if that was measured. Raises KeyError or ValueError where a file of the run is
    damaged."""
    charts = {"training": _training(run), "ramp": _ramp(run), "layers": _layers(run.layers)}
    for number, evaluation in enumerate(run.evaluations):
        if evaluation.get("confusion") and len(evaluation["classes"]) <= CLASSES:
            charts[f"confusion-{number}"] = _confusion(evaluation)
    if run.benchmark:
        charts |= _benchmark(run.benchmark)
    return {name: chart for name, chart in charts.items() if chart.data}


def curve(run: Run, column: str) -> tuple[list[float], list[float]]:
    """The epochs at which a column of the metrics has values, and these values; at most `POINTS`, the last included."""
    steps_per_epoch = run.outcome.steps / run.outcome.epochs
    rows = [row for row in run.metrics if row.get(column)]
    rows = rows[:: -(-len(rows) // POINTS) or 1] + rows[-1:] if len(rows) > POINTS else rows
    return [float(row["step"]) / steps_per_epoch for row in rows], [_short(float(row[column])) for row in rows]


def accuracy_range(low: float, high: float) -> list[float]:
    """Of an axis that shows top-1 from low to high, in percent: `SPAN` points at least, and some room."""
    room = max(0.06 * (high - low), (SPAN - (high - low)) / 2)
    return [low - room, high + room]


def is_dead(layer: dict[str, str]) -> bool:
    """Whether a row of layers.csv is a layer that was pruned to nothing."""
    return layer["pruned"] == "True" and layer["zeros"] == layer["params"]


def _training(run: Run) -> Chart:
    traces, seen = [], [run.outcome.top1]
    epochs, loss = curve(run, "train_loss")
    if epochs:
        traces.append(_line("training loss", epochs, loss, GREY) | {"yaxis": "y2"})
    for column, name, colour in (("val_top1", "validation", GREEN), ("test_top1", "test", BLUE)):
        epochs, top1 = curve(run, column)
        if epochs:
            seen += top1
            traces.append(_line(f"{name} top-1", epochs, top1, colour, many=30) | {"hovertemplate": "%{y:.2f} %"})
    layout = {
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "top-1 (%)"}, "range": accuracy_range(min(seen), max(seen))},
        "yaxis2": {"title": {"text": "training loss"}, "overlaying": "y", "side": "right", "showgrid": False,
                   "rangemode": "tozero", "tickmode": "auto"},
    }  # fmt: skip
    return Chart(traces, layout, "Loss and accuracy")


def _ramp(run: Run) -> Chart:
    traces = []
    for column, name, colour in (("sparsity_scheduled", "scheduled", GREY), ("sparsity", "measured", ORANGE)):
        epochs, sparsity = curve(run, column)
        if epochs:
            trace = _line(name, epochs, [_short(100 * value) for value in sparsity], colour)
            trace["line"]["dash"] = "dash" if name == "scheduled" else "solid"
            traces.append(trace | {"hovertemplate": "%{y:.2f} %"})
    layout = {
        "xaxis": {"title": {"text": "epoch"}, "rangemode": "tozero"},
        "yaxis": {"title": {"text": "zero weights (%)"}, "range": [0, 103]},
    }
    return Chart(traces, layout, "Sparsity, scheduled and measured")


def _layers(layers: Sequence[dict[str, str]]) -> Chart:
    names = [layer["name"] for layer in layers]
    colours = [GREY if layer["pruned"] != "True" else RED if is_dead(layer) else ORANGE for layer in layers]
    texts = [
        f"{layer['name']} ({layer['shape']})<br>{int(layer['zeros']):,} of {int(layer['params']):,} weights are zero"
        + ("" if layer["pruned"] == "True" else "<br>not pruned")
        for layer in layers
    ]
    bars = {
        "type": "bar", "x": names, "y": [_short(100 * float(layer["sparsity"])) for layer in layers], "text": texts,
        "textposition": "none", "hovertemplate": "%{text}<extra>%{y:.2f} %</extra>", "marker": {"color": colours},
    }  # fmt: skip
    dead = colours.count(RED)
    few = len(names) <= 60
    layout = {
        "xaxis": {"type": "category", "tickangle": -90, "automargin": True, "showticklabels": few, "showgrid": False,
                  "tickfont": {"size": 9}},
        "yaxis": {"title": {"text": "zero weights (%)"}, "range": [0, 103]},
    }  # fmt: skip
    title = "Sparsity of each layer" + (f"; red: {dead} wholly zero" if dead else "")
    return Chart([bars] if names else [], layout, title)


def _confusion(evaluation: dict[str, Any]) -> Chart:
    """Of one split: a row for each true class, in percent of its images."""
    classes, counts = [str(each) for each in evaluation["classes"]], evaluation["confusion"]
    shares = [[100 * count / max(1, sum(line)) for count in line] for line in counts]
    texts = [
        [
            f"{true}, taken for {said}<br>{count} of {sum(line)} images"
            for said, count in zip(classes, line, strict=True)
        ]
        for true, line in zip(classes, counts, strict=True)
    ]
    heat = {
        "type": "heatmap", "x": classes, "y": classes, "z": shares, "text": texts, "colorscale": "Blues",
        "reversescale": True, "zmin": 0, "zmax": 100, "hovertemplate": "%{text}<extra></extra>",
        "colorbar": {"title": {"text": "%"}, "thickness": 12},
    }  # fmt: skip
    layout = {
        "height": 200 + 18 * len(classes),
        "xaxis": {"type": "category", "title": {"text": "said"}, "tickangle": -45, "automargin": True},
        "yaxis": {"type": "category", "title": {"text": "true"}, "autorange": "reversed", "automargin": True},
    }
    return Chart([heat], layout, f"Confusion on {evaluation.get('split', 'an unnamed split')}, in % of each true class")


def _benchmark(found: dict[str, Any]) -> dict[str, Chart]:
    """A chart for each batch size, dense beside sparse in every runtime, and one of the layers in MNN."""
    place = f"{found['threads']} thread{'s' if found['threads'] > 1 else ''} of {found['device']}, {found['date'][:10]}"
    charts = {}
    for batch in found["batches"]:
        bars = []
        for kind, colour in (("dense", GREY), ("sparse", ORANGE)):
            timings = [each for each in batch["timings"] if each["kind"] == kind]
            ms = [each[batch["clock"]] for each in timings]
            spread = {
                "type": "data", "symmetric": False, "array": [_short(each["q3"] - each["median"]) for each in ms],
                "arrayminus": [_short(each["median"] - each["q1"]) for each in ms],
            }  # fmt: skip
            bars.append({
                "type": "bar", "orientation": "h", "name": kind, "marker": {"color": colour},
                "x": [_short(each["median"]) for each in ms], "y": [each["runtime"] for each in timings],
                "error_x": spread, "hovertemplate": "%{x:.3g} ms",
            })  # fmt: skip
        images = "1 image" if batch["size"] == 1 else f"{batch['size']} images"
        gain = f"; zeros: {batch['gain']:.2f} times the fastest dense runtime's speed" if batch["gain"] else ""
        charts[f"bench-{batch['size']}"] = Chart(bars, _of_times("y", batch["clock"]), f"{images}, {place}{gain}")
    layers = found["layers"]
    points = [
        {
            "type": "scatter", "mode": "markers", "name": f"{kind} kernels", "marker": {"color": colour},
            "x": [each["layer"] for each in layers], "y": [_short(each[f"{kind}_ms"]) for each in layers],
            "text": [
                f"{100 * each['zeros'] / each['weights']:.1f} % zeros"
                + ("" if each["has_sparse_kernel"] else ", no sparse kernel")
                + "; sparse kernels are "
                + (f"faster from {100 * each['break_even']:.0f} % on" if each["break_even"] < 1 else "never faster")
                for each in layers
            ],
            "hovertemplate": "%{y:.3g} ms<br>%{text}",
        }
        for kind, colour in (("dense", GREY), ("sparse", ORANGE))
    ]  # fmt: skip
    if layers:
        charts["bench-layers"] = Chart(
            points, _of_times("x", "cpu_ms"), f"Each layer in MNN, {found['batches'][0]['size']} at a time"
        )
    return charts


def _of_times(names: str, clock: str) -> dict[str, Any]:
    """The axis with names, and the other one."""
    title = "process time (ms)" if clock == "cpu_ms" else "wall time (ms)"
    labels = {"type": "category", "automargin": True, "showgrid": False}
    labels |= {"autorange": "reversed"} if names == "y" else {"tickangle": -90, "tickfont": {"size": 9}}
    other = "x" if names == "y" else "y"
    return {f"{names}axis": labels, f"{other}axis": {"title": {"text": title}, "rangemode": "tozero"}}


def _line(name: str, x: list[float], y: list[float], colour: str, many: int = 2) -> dict[str, Any]:
    """With a marker at each point unless there are `many`."""
    mode = "lines" if len(x) > many else "lines+markers"
    return {"type": "scatter", "mode": mode, "name": name, "x": x, "y": y, "line": {"color": colour, "width": 2}}


def _short(value: float) -> float:
    """Five digits, which is more than can be seen: the page holds many of these."""
    return float(f"{value:.5g}")
