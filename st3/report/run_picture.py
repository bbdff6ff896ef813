"""run.png: what happened in one run, from its files alone."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from st3.report.style import BLUE, GREEN, GREY, ORANGE, RED
from st3.training.run_directory import RunDirectory
from st3.whole_files import save_picture


def draw_run(directory: RunDirectory) -> None:
    """Draw loss, accuracy and sparsity over training, and each layer's sparsity, into the run's picture."""
    summary = directory.summary()
    assert summary, "nothing to draw before the first evaluation"
    figure = Figure(figsize=(13, 7.6), layout="constrained")  # not pyplot: no window system, no global state
    (loss, accuracy), (sparsity, layers) = figure.subplots(2, 2)
    figure.suptitle(
        f"{summary.model} on {summary.dataset}, {summary.method}: {summary.top1:.2f} % top-1 "
        f"at {summary.sparsity:.2%} sparsity, {_millions(summary.macs_dense)} → {_millions(summary.macs)} MACs"
    )
    series = _Series(directory.metrics(), summary.steps / summary.epochs)
    _curves(loss, series, {"train_loss": ("training", BLUE)}, title="Loss", ylabel="cross-entropy")
    top1 = {"val_top1": ("validation", GREEN), "test_top1": ("test", BLUE)}
    _curves(accuracy, series, top1, title="Accuracy", ylabel="top-1 (%)")
    ramp = {"sparsity_scheduled": ("scheduled", GREY), "sparsity": ("measured", ORANGE)}
    _curves(sparsity, series, ramp, title="Sparsity", ylabel="zero weights (%)", factor=100)
    sparsity.set_ylim(0, 102)
    if summary.constant_logits:
        text = "the logits are the\nsame for all test images"
        accuracy.text(0.5, 0.5, text, ha="center", color=RED, transform=accuracy.transAxes)
    _layers(layers, directory.layers(), summary.sparsity)
    save_picture(directory.picture, figure)


class _Series:
    """Columns of the metrics over epochs."""

    def __init__(self, metrics: Sequence[dict[str, str]], steps_per_epoch: float):
        self._metrics, self._steps_per_epoch = metrics, steps_per_epoch

    def __call__(self, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values, where there is one."""
        rows = [row for row in self._metrics if row[name]]
        return [float(row["step"]) / self._steps_per_epoch for row in rows], [float(row[name]) for row in rows]


def _curves(
    axes: Axes,
    series: _Series,
    curves: dict[str, tuple[str, str]],
    *,
    title: str,
    ylabel: str,
    factor: float = 1,
) -> None:
    """Each of the columns `curves`: what it is called, and its colour."""
    for name, (label, colour) in curves.items():
        epochs, values = series(name)
        if epochs:
            marker = "o" if len(epochs) < 30 else None
            width = 5 if colour == GREY else 1.5  # seen also where another curve lies on it
            scaled = [factor * value for value in values]
            axes.plot(epochs, scaled, color=colour, label=label, marker=marker, markersize=3, linewidth=width)
    axes.set(xlabel="epoch", ylabel=ylabel, title=title)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.25)
    if len(axes.get_lines()) > 1:
        axes.legend(framealpha=0.9)


def _layers(axes: Axes, layers: Sequence[dict[str, str]], overall: float) -> None:
    places = range(len(layers))
    colours = [_colour(row) for row in layers]
    axes.bar(places, [100 * float(row["sparsity"]) for row in layers], color=colours, width=0.8)
    axes.axhline(100 * overall, color="black", linewidth=1, linestyle="--")
    axes.annotate(
        f"all pruned layers {overall:.2%}", (0, 100 * overall), (0, 3), textcoords="offset points", fontsize=8
    )
    every = max(1, len(layers) // 30)
    axes.set_xticks(places[::every], [row["name"] for row in layers][::every], rotation=90, fontsize=7)
    dead = colours.count(RED)
    title = "Sparsity of each layer, input to output" + (f"; red: {dead} wholly zero" if dead else "")
    axes.set(ylim=(0, 108), ylabel="zero weights (%)", title=title)
    axes.margins(x=0.01)


def _colour(layer: dict[str, str]) -> str:
    if layer["pruned"] != "True":
        return GREY
    return RED if layer["zeros"] == layer["params"] else ORANGE


def _millions(macs: int) -> str:
    return f"{macs / 1e6:,.1f} M"
