"""run.png: what happened in one run, from its files alone."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from st3.report.style import BLUE, GREEN, GREY, ORANGE, RED
from st3.training.run_directory import RunDirectory


def draw_run(directory: RunDirectory) -> None:
    """Draw accuracy and sparsity over training, and each layer's sparsity, into the run's picture."""
    summary = directory.summary()
    assert summary, "nothing to draw before the first evaluation"
    figure = Figure(figsize=(13, 4.6), layout="constrained")  # not pyplot: no window system, no global state
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    figure.suptitle(
        f"{summary.model} on {summary.dataset}, {summary.method}: {summary.top1:.2f} % top-1 "
        f"at {summary.sparsity:.2%} sparsity, {_millions(summary.macs_dense)} → {_millions(summary.macs)} MACs"
    )
    if summary.constant_logits:
        left.text(
            0.5, 0.5, "the logits are the\nsame for all test images", ha="center", color=RED, transform=left.transAxes
        )
    _training(left, directory.metrics(), summary.steps / summary.epochs)
    _layers(right, directory.layers(), summary.sparsity)
    figure.savefig(directory.picture, dpi=110)


def _training(axes: Axes, metrics: Sequence[dict[str, str]], steps_per_epoch: float) -> None:
    def series(name: str) -> tuple[list[float], list[float]]:
        rows = [row for row in metrics if row[name]]
        return [float(row["step"]) / steps_per_epoch for row in rows], [float(row[name]) for row in rows]

    for name, colour in (("val_top1", GREEN), ("test_top1", BLUE)):
        epochs, top1 = series(name)
        if epochs:
            axes.plot(
                epochs,
                top1,
                color=colour,
                label=f"{name.split('_')[0]} top-1",
                marker="o" if len(epochs) < 30 else None,
                markersize=4,
            )
    axes.set(xlabel="epoch", ylabel="top-1 accuracy (%)", title="Training")
    axes.grid(alpha=0.25)
    sparse = axes.twinx()
    epochs, sparsity = series("sparsity")
    sparse.plot(epochs, [100 * s for s in sparsity], color=ORANGE, linewidth=1.5, label="sparsity")
    lines = [*axes.get_lines(), *sparse.get_lines()]
    axes.legend(handles=lines, loc="lower right", framealpha=0.9)
    axes.set_zorder(sparse.get_zorder() + 1)  # the legend and the accuracy above the sparsity
    axes.patch.set_visible(False)
    sparse.set_ylim(0, 102)
    sparse.set_ylabel("sparsity (%)", color=ORANGE)
    sparse.tick_params(axis="y", colors=ORANGE)


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
