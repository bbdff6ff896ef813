"""The plot of paired differences: how far every row is from a reference, seed by seed and on average."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from st3.report.notes import plus_minus, signed
from st3.report.results import Contest, Result, Results
from st3.report.style import BLACK, styles

COLUMNS = 2


def paired_differences(results: Results) -> Figure | None:
    """A panel for each sparsity and number of epochs: top-1 of every row minus that of the reference over the seeds
    that both have, as mean, 95 % interval, and a dot for each seed. None where no row is ranked."""
    if not results.contests:
        return None
    look = styles(series.label for series in results.table.series)
    panels = [_panel(results, contest) for contest in results.contests]
    columns = min(COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    heights = [1.1 + 0.29 * max(len(rows) for _, rows in panels[columns * i : columns * (i + 1)]) for i in range(lines)]
    figure = Figure(figsize=(7.5 if columns == 1 else 12, 0.3 + sum(heights)), layout="constrained")
    figure.suptitle(results.table.title, fontsize=11)
    grid = list(figure.subplots(lines, columns, squeeze=False, height_ratios=heights).flat)
    for axes, contest, (reference, rows) in zip(grid, results.contests, panels, strict=False):
        _draw(axes, reference, rows, look)
        name = f"{reference.row.label}{', the best' if reference is contest.best else ''}"
        axes.set_title(f"{100 * contest.sparsity:g} % sparsity, {contest.epochs} epochs: minus {name}", fontsize=10)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    return figure


def _panel(results: Results, contest: Contest) -> tuple[Result, list[Result]]:
    """The reference, the table's own where it is ranked, else the best; and the rows to compare, the highest first."""
    own = [row for row in contest.rows if row.row.label == results.table.reference]
    reference = own[0] if own else contest.best
    rows = results.comparable[contest.sparsity, contest.epochs]
    found = [(difference.mean, row) for row in rows if row is not reference and (difference := row.minus(reference))]
    return reference, [row for _, row in sorted(found, key=lambda each: each[0], reverse=True)]


def _draw(axes: Axes, reference: Result, rows: list[Result], look: dict[str, tuple[str, str]]) -> None:
    """The rows below each other. The scale is that of the dots, not of the intervals, which may be very wide where
    there are two seeds: one that does not end in the picture has no cap there."""
    axes.axvline(0, color=BLACK, linewidth=1)
    drawn, names = [0.0], []
    for place, row in enumerate(rows):
        colour, marker = look[row.row.label]
        difference, dots = row.minus(reference), row.differences(reference)
        assert difference
        drawn += dots
        names.append(f"{row.row.label} (n = {difference.n})")
        below = 0.27 if len(dots) > 1 else 0
        axes.plot(dots, [place + below] * len(dots), ".", color=colour, markersize=6, alpha=0.7, markeredgewidth=0)
        if difference.half_width is not None:
            axes.errorbar(
                difference.mean, place, xerr=difference.half_width, fmt=marker, color=colour, markersize=5.5, capsize=3
            )
        axes.annotate(
            plus_minus(difference, signed),
            (1.01, place),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            annotation_clip=False,
        )
    margin = 0.08 * (max(drawn) - min(drawn)) or 1
    axes.set_xlim(min(drawn) - margin, max(drawn) + margin)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), names, fontsize=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", alpha=0.25)
    axes.set_xlabel("difference in top-1 (points)", fontsize=9)
