"""The results of a table as Markdown, CSV and LaTeX, and as text for the terminal."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import quote

from st3.plain_files import csv_text
from st3.report.notes import (
    command,
    conventions,
    footnotes,
    making,
    plus_minus,
    remarks,
    signed,
    sources,
    warnings,
)
from st3.report.results import Result, Results, Run

NOTHING = "–"
MEASURED = "top-1 measured"
COLUMNS = 3
"""Settings that stand beside the method in columns of their own; more are in the name of the row, and behind it all."""


def headings(results: Results) -> list[str]:
    """The columns of `cells` that are not empty in every row."""
    rows = [cells(results, result) for result in results.rows]
    return [name for name in rows[0] if any(row[name] != NOTHING for row in rows)] if rows else ["method"]


def cells(results: Results, result: Result) -> dict[str, str]:
    """Heading to text of one of the rows. `footnotes` explains the marks."""
    row, published, contest = result.row, result.row.published, results.contest(result)
    dagger, double_dagger = " †" if result.missed else "", " ‡" if result.warnings else ""
    minus_best = NOTHING
    if contest:
        difference = contest.minus_best(result)
        pairs = f" ({difference.n} pairs)" if difference.n < len(result.runs) else ""
        minus_best = "best" if result is contest.best else f"{plus_minus(difference, signed)}{pairs}"
    budgets = {epochs for each in results.measured for epochs in each.epochs}
    few = 0 < len(row.settings) <= COLUMNS
    return {
        "method": f"{row.method if few else row.label}{double_dagger}",
        **(dict(row.settings) if few else {}),
        "sparsity (%)": f"{100 * row.sparsity:g}",
        "epochs": ", ".join(map(str, result.epochs)) if len(budgets) > 1 and result.runs else NOTHING,
        "top-1 published": f"{published.top1:.2f}" if published else NOTHING,
        MEASURED: plus_minus(result.top1) if result.runs else NOTHING,
        "n": str(len(result.runs)) if result.runs else NOTHING,
        "minus best": minus_best,
        "minus published": NOTHING if result.difference is None else signed(result.difference),
        "sparsity measured (%)": f"{100 * result.sparsity.mean:.2f}{dagger}" if result.runs else NOTHING,
        "M MACs published": f"{published.macs_millions:g}" if published and published.macs_millions else NOTHING,
        "M MACs measured": _significant(result.macs_millions.mean) if result.runs else NOTHING,
        **({} if few else dict(row.settings)),
    }


def to_text(results: Results) -> str:
    """For the terminal: what to know before, the table with its columns aligned, what its marks mean. A star is what
    is bold elsewhere. Settings that the rows' names hold have no columns."""
    columns = headings(results)
    settings = [name for name, _ in results.rows[0].row.settings] if results.rows else []
    if len(settings) > COLUMNS:
        columns = [name for name in columns if name not in settings]
    lines = [columns]
    for result in results.rows:
        text = cells(results, result)
        if results.inside_noise(result):
            text[MEASURED] += " *"
        elif result.runs and result.top1.n == 1 and any(each.top1.n > 1 for each in results.measured):
            text[MEASURED] += " (no interval)"
        lines.append([text[name] for name in columns])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    left = {"method", *settings}
    table = [
        "  ".join(
            text.ljust(width) if name in left else text.rjust(width)
            for name, text, width in zip(columns, line, widths, strict=True)
        ).rstrip()
        for line in lines
    ]
    notes = ["One seed each has no interval."] if results.runs and all(r.top1.n == 1 for r in results.measured) else []
    notes += [note.replace("Bold: ", "*: ", 1) for note in footnotes(results)]
    return "\n".join([*warnings(results), *(table if results.rows else []), *notes])


def to_markdown(results: Results, folder: Path) -> str:
    """With links, relative to `folder`, to the run directories."""
    text = [f"# {_markdown(results.table.title)}", "", *_table(results, folder), ""]
    text += [f"{_markdown(note)}\n" for note in footnotes(results)]
    lines = *remarks(results), *conventions(results), *sources(results), *making(results)
    text += [f"- {_markdown(line)}" for line in lines]
    return "\n".join(text) + "\n"


def to_block(results: Results, table: str) -> str:
    """Markdown that stands in somebody else's text, says all by itself and links to nothing. `table` is how the command
    names the table."""
    text = ["```bash", " ".join(command(results, table).splitlines()), "```", ""] if results.runs else []
    text += [*_table(results, None), "", *(f"{_markdown(note)}\n" for note in footnotes(results))]
    text += [*map(_markdown, making(results)), ""]
    text += ["<details><summary>What is trained and counted</summary>", ""]
    text += [f"- {_markdown(line)}" for line in (*remarks(results), *conventions(results), *sources(results))]
    return "\n".join([*text, "", "</details>"]) + "\n"


_COLUMNS = (
    "method", "sparsity_target", "top1_published", "macs_millions_published", "source", "n", "top1_mean", "top1_std",
    "top1_half_width", "minus_best", "minus_best_half_width", "minus_best_n", "minus_published", "sparsity_mean",
    "missed", "macs_millions_mean", "macs_millions_std", "epochs", "seeds", "run_dirs", "warnings",
)  # fmt: skip
"""Of table.csv."""


def to_csv(results: Results, folder: Path) -> str:
    """Unrounded, a line for each row; empty where there is nothing."""
    lines = []
    for result in results.rows:
        published, contest = result.row.published, results.contest(result)
        line: dict[str, object] = {
            "method": result.row.label,
            "sparsity_target": result.row.sparsity,
            "n": len(result.runs),
            "minus_published": result.difference,
        }
        if published:
            line |= {
                "top1_published": published.top1,
                "macs_millions_published": published.macs_millions,
                "source": published.source,
            }
        if result.runs:
            line |= {
                "top1_mean": result.top1.mean,
                "top1_std": result.top1.std,
                "top1_half_width": result.top1.half_width,
                "sparsity_mean": result.sparsity.mean,
                "missed": result.missed,
                "macs_millions_mean": result.macs_millions.mean,
                "macs_millions_std": result.macs_millions.std,
                "epochs": " ".join(map(str, result.epochs)),
                "seeds": " ".join(str(run.seed) for run in result.runs),
                "run_dirs": " ".join(link(run, folder) for run in result.runs if run.directory),
                "warnings": "; ".join(result.warnings),
            }
        if contest:
            difference = contest.minus_best(result)
            line |= {
                "minus_best": difference.mean,
                "minus_best_half_width": difference.half_width,
                "minus_best_n": difference.n,
            }
        lines.append(line)
    return csv_text(_COLUMNS, lines)


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
        text = {name: _latex(cell) for name, cell in cells(results, result).items()}
        if results.inside_noise(result):
            text[MEASURED] = rf"\textbf{{{text[MEASURED]}}}"
        if before and result.row.label != before:
            lines.append(r"\addlinespace")
        before = result.row.label
        lines.append(rf"{' & '.join(text[name] for name in columns)} \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    for line in (*warnings(results), *footnotes(results), *sources(results)):
        lines += ["", rf"{{\footnotesize {_latex(line)}}}"]
    lines.append(r"\end{table}")
    return "\n".join(lines) + "\n"


def link(run: Run, folder: Path) -> str:
    """The run directory as seen from `folder`; empty where there is none."""
    return Path(os.path.relpath(run.directory.path, folder)).as_posix() if run.directory else ""


def url(run: Run, folder: Path) -> str:
    """The same as a link of a page, whatever signs are in its name."""
    return quote(link(run, folder), safe="/=,+")


def _markdown(text: str) -> str:
    """One line in which nothing is HTML: what comes from files is shown, never executed."""
    return re.sub(r"<(?=[\w/!?])", "&lt;", " ".join(text.split()))


def _table(results: Results, folder: Path | None) -> Iterator[str]:
    """Lines of Markdown; without `folder` there is no column of links to the runs."""
    columns = headings(results)
    yield from (f"**{_markdown(warning)}**\n" for warning in warnings(results))
    yield _line([*map(_markdown, columns), *(["runs"] if folder else [])])
    yield _line([*("---" if name == "method" else "---:" for name in columns), *(["---"] if folder else [])])
    for result in results.rows:
        text = {name: _markdown(cell) for name, cell in cells(results, result).items()}
        if results.inside_noise(result):
            text[MEASURED] = f"**{text[MEASURED]}**"
        line = [text[name] for name in columns]
        if folder:
            line.append(", ".join(_linked(run, folder) for run in result.runs) or NOTHING)
        yield _line(line)


def _linked(run: Run, folder: Path) -> str:
    return f"[s{run.seed}]({url(run, folder)})" if run.directory else f"s{run.seed}"


def _significant(millions: float) -> str:
    return f"{millions:.0f}" if millions >= 100 else f"{millions:.1f}" if millions >= 10 else f"{millions:.2f}"


def _line(texts: Sequence[str]) -> str:
    return f"| {' | '.join(text.replace('|', chr(92) + '|') for text in texts)} |"


_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "±": r"$\pm$", "−": "$-$", "–": "--", "×": r"$\times$",
    "σ": r"$\sigma$", "†": r"$\dagger$", "‡": r"$\ddagger$",
}  # fmt: skip


def _latex(text: str) -> str:
    return "".join(_LATEX.get(letter, letter) for letter in text)
