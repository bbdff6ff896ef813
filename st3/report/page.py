"""Results as one HTML page that needs nothing else: no network, no other file. Its charts are plotly's, whose script is
part of it; tables and texts are there without any script."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from st3.report import charts
from st3.report.formats import MEASURED, NOTHING, cells, headings, link, url
from st3.report.notes import conventions, footnotes, making, plus_minus, remarks, sources, warnings
from st3.report.results import Result, Results, Run
from st3.report.run_charts import CLASSES, Chart, run_charts

NARROW = 3
"""Sparsities of a pivot beside which the first chart finds room on a desk's screen."""


@dataclass(frozen=True)
class _Cell:
    """Of the pivot: one row of the results, or nothing."""

    result: Result
    measured: str
    """Empty where it was not."""
    published: str
    n: str
    """Number of seeds; empty where it is the usual one, which is said once."""
    marks: str
    best: bool
    """Or inside the noise of the best."""


@dataclass(frozen=True)
class _Section:
    """What a run has to itself."""

    name: str
    """Of the element, which the table's links lead to."""
    result: Result
    run: Run
    link: str
    url: str
    """Both empty where there is no folder."""
    settings: Sequence[str]
    charts: Sequence[str]
    notes: Sequence[str]


def to_html(results: Results, folder: Path) -> str:
    """The page that is to lie in `folder`: the results over methods and sparsities first, then charts, all rows, a
    section for each run, and how it was made."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: training starts without them
    from plotly.offline import get_plotlyjs

    drawn = _charts(results)
    sparsities = sorted({result.row.sparsity for result in results.rows})
    sections, of_runs = _sections(results, folder)
    templates = Environment(
        loader=PackageLoader("st3.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    seeds = Counter(result.top1.n for result in results.measured).most_common(1)
    usual = seeds[0][0] if seeds else 0
    return templates.get_template("page.html").render(
        title=results.table.title,
        warnings=warnings(results),
        sparsities=sparsities,
        beside=next(iter(drawn), None) if len(sparsities) <= NARROW else None,
        pivot=_pivot(results, usual),
        pivot_notes=_pivot_notes(results, usual),
        drawn=drawn,
        headings=headings(results),
        text_columns={"method", "runs", *(name for result in results.rows for name, _ in result.row.settings)},
        rows=[
            (result, cells(results, result), [each for each in sections if each.result is result])
            for result in results.rows
        ],
        measured=MEASURED,
        nothing=NOTHING,
        inside_noise=results.inside_noise,
        sections=sections,
        footnotes=footnotes(results),
        what=[*remarks(results), *conventions(results), *sources(results)],
        making=making(results),
        charts=json.dumps(
            {name: {"title": c.title, "data": c.data, "layout": c.layout} for name, c in (drawn | of_runs).items()},
            separators=(",", ":"),
        ).replace("<", "\\u003c"),  # may not end the element that holds it
        plotly=get_plotlyjs(),
    )


def _charts(results: Results) -> dict[str, Chart]:
    """By name, the main one first."""
    found = {
        "accuracy_over_sparsity": charts.accuracy_over_sparsity(results),
        "accuracy_over_macs": charts.accuracy_over_macs(results),
        **{f"differences-{i}": chart for i, chart in enumerate(charts.paired_differences(results))},
        "layer_sparsity": charts.layer_sparsity(results),
        "training_curves": charts.training_curves(results),
    }
    return {name: chart for name, chart in found.items() if chart}


def _pivot(results: Results, usual: int) -> dict[str, dict[float, _Cell]]:
    """Label of the series → sparsity → what stands there. `usual` is the number of seeds that most rows have."""
    pivot: dict[str, dict[float, _Cell]] = {}
    for result in results.rows:
        published = result.row.published
        pivot.setdefault(result.row.label, {})[result.row.sparsity] = _Cell(
            result,
            measured=plus_minus(result.top1) if result.runs else "",
            published=f"{published.top1:.2f}" if published else "",
            n=f"n = {result.top1.n}" if result.runs and result.top1.n != usual else "",
            marks=("†" if result.missed else "") + ("‡" if result.warnings else ""),
            best=results.inside_noise(result),
        )
    return pivot


def _pivot_notes(results: Results, usual: int) -> list[str]:
    """How its cells are read, besides what the footnotes say."""
    notes = ["Top-1 in percent; method down, sparsity across."]
    if usual:
        others = any(result.top1.n != usual for result in results.measured)
        notes.append(f"n = {usual}{' where nothing else is said' if others else ' in every cell'}.")
    if any(result.runs and result.top1.n == 1 for result in results.rows):
        notes.append("n = 1 has no interval.")
    if any(result.row.published for result in results.rows):
        notes.append("Grey: published.")
    return notes


def _sections(results: Results, folder: Path) -> tuple[list[_Section], dict[str, Chart]]:
    """Of all runs, and their charts by name."""
    sections: list[_Section] = []
    drawn: dict[str, Chart] = {}
    runs = [(result, run) for result in results.measured for run in result.runs]
    for number, (result, run) in enumerate(runs):
        name = f"run-{number}"
        own = {f"{name}-{kind}": chart for kind, chart in run_charts(run).items()}
        drawn |= own
        settings = [each for each in result.row.overrides if not each.startswith("seed=")]
        settings += [f"seed={run.seed}", *run.outcome.changes]
        notes = list(run.outcome.warnings)
        notes += [
            f"The confusion matrix of {len(evaluation['classes'])} classes is too large to be shown."
            for evaluation in run.evaluations
            if "confusion" in evaluation and len(evaluation["classes"]) > CLASSES
        ]
        sections.append(_Section(name, result, run, link(run, folder), url(run, folder), settings, list(own), notes))
    return sections, drawn
