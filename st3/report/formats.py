"""The results of a table as Markdown, CSV and LaTeX."""

import csv
import io
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from st3.report.results import Result, Results, Run, Statistic
from st3.report.table import Row

CONVENTIONS = (
    "Top-1 is in percent of the test images, of the network after the last epoch; ± is the sample standard deviation "
    "over the seeds, n their number.",
    "The difference is measured minus published, in points.",
    "Sparsity is the fraction of the prunable weights that are exactly zero, counted in the trained network; prunable "
    "are the weights of every Conv2d and Linear layer that the run does not leave dense.",
    "MACs are multiply-accumulates of Conv2d and Linear layers for one image; a zero weight costs nothing; biases, "
    "normalisation, activations and pooling are not counted.",
    "Published figures follow the conventions of their own sources.",
)
NOTHING = "–"


def headings(results: Results) -> list[str]:
    """The columns of `cells` that are not empty in every row."""
    rows = [cells(result) for result in results.rows]
    return [name for name in rows[0] if any(row[name] != NOTHING for row in rows)] if rows else ["method"]


def cells(result: Result) -> dict[str, str]:
    """Heading to text. `footnotes` explains the marks."""
    row, published = result.row, result.row.published
    dagger, double_dagger = " †" if result.missed else "", " ‡" if result.warnings else ""
    return {
        "method": f"{row.label}{double_dagger}",
        "sparsity (%)": f"{100 * row.sparsity:g}",
        "top-1 published": f"{published.top1:.2f}" if published else NOTHING,
        "top-1 measured": _plus_minus(result.top1) if result.runs else NOTHING,
        "n": str(len(result.runs)) if result.runs else NOTHING,
        "difference": NOTHING if result.difference is None else _signed(result.difference),
        "sparsity measured (%)": f"{100 * result.sparsity.mean:.2f}{dagger}" if result.runs else NOTHING,
        "M MACs published": f"{published.macs_millions:g}" if published and published.macs_millions else NOTHING,
        "M MACs measured": _significant(result.macs_millions.mean) if result.runs else NOTHING,
    }


def footnotes(results: Results) -> list[str]:
    """What the marks in the table mean, to be shown below it."""
    missed = any(result.missed for result in results.rows)
    lines = ["† The measured sparsity of a run misses the target by more than 0.5 points."] if missed else []
    rows: dict[str, list[str]] = {}
    for result in results.rows:
        for warning in result.warnings:
            rows.setdefault(warning, []).append(result.row.name)
    return lines + [f"‡ {'; '.join(names)}: {warning}." for warning, names in rows.items()]


def warnings(results: Results) -> list[str]:
    """What a reader must know before the numbers: that the runs are not those of the table, or not all there."""
    lines = []
    runs = results.runs
    if changes := dict.fromkeys(change for run in runs for change in run.changes):
        changed = sum(bool(run.changes) for run in runs)
        which = f"{changed} of {len(runs)} runs" if changed < len(runs) else "All runs"
        lines.append(f"{which} depart from the table's own settings: {', '.join(changes)}.")
    budgets = sorted({run.summary.epochs for run in runs})
    if len(budgets) > 1:
        lines.append(f"The runs differ in their epochs: {', '.join(map(str, budgets))}.")
    if results.unfinished:
        lines.append(f"Not finished, and not counted: {', '.join(results.unfinished)}.")
    if results.empty:
        lines.append(f"Neither measured nor published yet: {_by_sparsity(results.empty)}.")
    return lines


def remarks(results: Results) -> list[str]:
    """The notes of the table and of its series, and which layers the runs have pruned."""
    lines = [" ".join(note.split()) for note in results.table.notes]
    shown = {result.row.label for result in results.rows}
    for series in results.table.series:
        if series.note and series.label in shown:
            lines.append(f"{series.label}: {' '.join(series.note.split())}")
    by_layers: dict[str, list[str]] = {}
    for result in results.measured:
        if result.row.sparsity:
            for run in result.runs:
                labels = by_layers.setdefault(_pruned(run), [])
                if result.row.label not in labels:
                    labels.append(result.row.label)
    lines += [
        f"Layers pruned in the measured runs of {', '.join(labels)}: {what}." for what, labels in by_layers.items()
    ]
    return lines


def sources(results: Results) -> list[str]:
    """Where the published figures are from, in a sentence; none where none are shown."""
    labels: dict[str, list[str]] = {}
    for result in results.rows:
        if result.row.published:
            of_source = labels.setdefault(result.row.published.source, [])
            of_source += [result.row.label] if result.row.label not in of_source else []
    texts = [f"{', '.join(names)}: {source}" for source, names in labels.items()]
    return [f"Sources of the published figures: {'; '.join(texts)}."] if texts else []


def making(results: Results) -> list[str]:
    """How long the runs are and took, and the versions and devices that made them."""
    if not results.runs:
        return []
    runs = results.runs

    def values(of_run: Callable[[Run], object]) -> str:
        return ", ".join(dict.fromkeys(str(of_run(run)) for run in runs))

    def commit(run: Run) -> str:
        git = run.environment.get("git")
        return f"{git['commit'][:10]}{' with changes' if git['changed_files'] else ''}" if git else "none known"

    return [
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of {values(lambda run: run.summary.epochs)} epochs, "
        f"{values(lambda run: run.summary.model)} on {values(lambda run: run.summary.dataset)}, seeds "
        f"{values(lambda run: run.seed)}, {sum(run.summary.seconds for run in runs) / 3600:.2f} hours together.",
        f"st3 {values(lambda run: run.environment.get('st3'))}, PyTorch "
        f"{values(lambda run: run.environment.get('torch'))}, on {values(lambda run: run.environment.get('device'))}; "
        f"git commit {values(commit)}.",
    ]


def to_markdown(results: Results, folder: Path) -> str:
    """With links, relative to `folder`, to the run directories."""
    columns = headings(results)
    lines = [f"# {results.table.title}", ""]
    lines += [f"**{warning}**\n" for warning in warnings(results)]
    lines += [_line([*columns, "runs"]), _line([*(_rule(name) for name in columns), "---"])]
    for result in results.rows:
        text = cells(result)
        links = [f"[s{run.seed}]({link(run, folder)})" for run in result.runs]
        lines.append(_line([*(text[name] for name in columns), ", ".join(links) or NOTHING]))
    lines += ["", *(f"{note}\n" for note in footnotes(results))]
    lines += [f"- {line}" for line in (*remarks(results), *CONVENTIONS, *sources(results), *making(results))]
    return "\n".join(lines) + "\n"


def to_csv(results: Results, folder: Path) -> str:
    """Unrounded, a line for each row; empty where there is nothing."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    line: list[object]
    writer.writerow(
        ["method", "sparsity_target", "top1_published", "macs_millions_published", "source", "n", "top1_mean",
         "top1_std", "difference", "sparsity_mean", "missed", "macs_millions_mean", "macs_millions_std", "epochs",
         "seeds", "run_dirs", "warnings"]
    )  # fmt: skip
    for result in results.rows:
        published = result.row.published
        line = [result.row.label, result.row.sparsity]
        line += [published.top1, published.macs_millions, published.source] if published else [None] * 3
        line.append(len(result.runs))
        if result.runs:
            line += [
                result.top1.mean,
                result.top1.std,
                result.difference,
                result.sparsity.mean,
                result.missed,
                result.macs_millions.mean,
                result.macs_millions.std,
                " ".join(dict.fromkeys(str(run.summary.epochs) for run in result.runs)),
                " ".join(str(run.seed) for run in result.runs),
                " ".join(link(run, folder) for run in result.runs),
                "; ".join(result.warnings),
            ]
        else:
            line += [None] * 11
        writer.writerow(line)
    return file.getvalue()


def to_latex(results: Results) -> str:
    """A table environment for the booktabs package."""
    columns = headings(results)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{_latex(results.table.title)}}}",
        rf"\begin{{tabular}}{{{''.join('l' if name == 'method' else 'r' for name in columns)}}}",
        r"\toprule",
        rf"{' & '.join(map(_latex, columns))} \\",
        r"\midrule",
    ]
    before = None
    for result in results.rows:
        text = cells(result)
        if before and result.row.label != before:
            lines.append(r"\addlinespace")
        before = result.row.label
        lines.append(rf"{' & '.join(_latex(text[name]) for name in columns)} \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for line in (*warnings(results), *footnotes(results), *sources(results)):
        lines += ["", rf"{{\footnotesize {_latex(line)}}}"]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def link(run: Run, folder: Path) -> str:
    """The run directory as seen from `folder`."""
    return Path(os.path.relpath(run.directory.path, folder)).as_posix()


def _by_sparsity(rows: Sequence[Row]) -> str:
    of_label: dict[str, list[str]] = {}
    for row in rows:
        of_label.setdefault(row.label, []).extend([f"{100 * row.sparsity:g}"] if row.sparsity else [])
    labels: dict[str, list[str]] = {}
    for label, sparsities in of_label.items():
        labels.setdefault(", ".join(sparsities), []).append(label)
    return "; ".join(", ".join(names) + (f" at {what} %" if what else "") for what, names in labels.items())


def _pruned(run: Run) -> str:
    dense = [layer["name"] for layer in run.layers if layer["pruned"] != "True"]
    return f"{len(run.layers) - len(dense)} of {len(run.layers)}" + (f", not {', '.join(dense)}" if dense else "")


def _plus_minus(value: Statistic) -> str:
    return f"{value.mean:.2f}" + (f" ± {value.std:.2f}" if value.std is not None else "")


def _signed(value: float) -> str:
    rounded = round(value, 2) + 0.0  # no minus before zero
    return f"{rounded:+.2f}".replace("-", "−")


def _significant(millions: float) -> str:
    return f"{millions:.0f}" if millions >= 100 else f"{millions:.1f}" if millions >= 10 else f"{millions:.2f}"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


def _rule(name: str) -> str:
    return "---" if name == "method" else "---:"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
    "σ": r"$\sigma$", "†": r"$\dagger$", "‡": r"$\ddagger$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
