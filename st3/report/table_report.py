"""The report on a table: from run directories to report/ beside them."""

from pathlib import Path

from st3.report.difference_plot import paired_differences
from st3.report.formats import to_csv, to_latex, to_markdown
from st3.report.page import to_html
from st3.report.plots import accuracy_over_macs, accuracy_over_sparsity, layer_sparsity, training_curves
from st3.report.results import Results, read_results
from st3.report.style import save_png_and_svg
from st3.report.table import Table

_PLOTS = {
    "accuracy_over_sparsity": (
        accuracy_over_sparsity,
        "Top-1 accuracy and sparsity. Filled: measured here, with the 95 % interval where there are several seeds; "
        "hollow: published.",
        "Plot of top-1 accuracy over sparsity",
    ),
    "paired_differences": (
        paired_differences,
        "Top-1 minus that of the row named above each panel, in points, over the seeds that both rows have: mean, 95 % "
        "interval, and a dot for each seed. An interval that reaches 0 does not tell the two rows apart; one without a "
        "cap goes on outside the picture.",
        "Plot of paired differences in top-1 accuracy",
    ),
    "accuracy_over_macs": (
        accuracy_over_macs,
        "Top-1 accuracy and multiply-accumulates. Published figures are shown where their MACs are known.",
        "Plot of top-1 accuracy over MACs",
    ),
    "layer_sparsity": (
        layer_sparsity,
        "Sparsity of each layer, mean over the seeds. Grey: not pruned.",
        "Map of the sparsity of each layer in each measured row",
    ),
    "training_curves": (
        training_curves,
        "Test accuracy over training (solid, every seed) and the sparsity as it rises (dotted, first seed).",
        "Plots of test accuracy and sparsity over training",
    ),
}
"""Name of the files: what draws them, caption, description for those who do not see the plot."""


def write_report(table: Table, folder: Path) -> tuple[Path, Results]:
    """Write `folder`/report/ from the run directories `folder`/SLUG-sSEED: index.html, table.md, table.csv, table.tex
    and each plot as PNG and SVG. Returns the page's path, and what it shows."""
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    results = read_results(table, folder)
    drawn = {}
    for name, (draw, caption, shows) in _PLOTS.items():
        if figure := draw(results):
            save_png_and_svg(figure, report, name)
            drawn[name] = (caption, f"{shows}: {table.title}")
        else:  # there may be one of an earlier report
            for kind in ("png", "svg"):
                (report / f"{name}.{kind}").unlink(missing_ok=True)
    for name, text in (
        ("table.md", to_markdown(results, report)),
        ("table.csv", to_csv(results, report)),
        ("table.tex", to_latex(results)),
        ("index.html", to_html(results, report, drawn)),
    ):
        (report / name).write_text(text, encoding="utf-8")
    return report / "index.html", results
