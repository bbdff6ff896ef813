"""The report on a table: from run directories, and a record, to report/ beside them."""

from collections.abc import Iterable
from pathlib import Path

from st3.report.formats import to_csv, to_latex, to_markdown
from st3.report.page import to_html
from st3.report.record import Line
from st3.report.results import Results, read_results
from st3.report.table import Table
from st3.whole_files import write_text


def write_report(table: Table, folder: Path, recorded: Iterable[Line] = ()) -> tuple[Path, Results]:
    """Write `folder`/report/ from the run directories `folder`/SLUG-sSEED, and from the lines of a record for runs that
    have none there: index.html, table.md, table.csv and table.tex. Returns the page's path, and what it shows."""
    report = folder / "report"
    report.mkdir(parents=True, exist_ok=True)
    results = read_results(table, folder, recorded)
    for name, text in (
        ("table.md", to_markdown(results, report)),
        ("table.csv", to_csv(results, report)),
        ("table.tex", to_latex(results)),
        ("index.html", to_html(results, report)),
    ):
        write_text(report / name, text)
    return report / "index.html", results
