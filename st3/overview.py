"""Show any runs, from a sweep or not, as a table and as one page.

Runs of the same settings are one row, whatever their seed: mean, 95 % interval, and how many they are. The settings
that differ between the rows name them. The page is one HTML file with tables, charts and a section for each run; it
needs nothing else, no network either. A sweep (st3-train -m …) ends with both.

examples:
  st3 report outputs/20261124-155552-sweep         a folder, with all runs in it
  st3 report outputs/a outputs/b                   these runs
  st3 report outputs --out ~/report.html           the page somewhere else
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from st3.errors import DamagedError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 report`."""
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN|DIR", help="run directories, or folders to look for some in"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.html",
        help="the page (default report.html in DIR, or beside the runs where several are named)",
    )


def run(options: argparse.Namespace) -> int:
    """0, or the exit code of `DamagedError` where a run is damaged, and so not counted. Raises `UserError`."""
    text, damaged = overview(options.runs, options.out)
    print(text)
    return DamagedError.exit_code if damaged else 0


def overview(paths: Sequence[Path], page: Path | None = None) -> tuple[str, bool]:
    """Write the page of the runs in `paths`, and return the table as text, with the page's path below it; and whether
    a run is damaged.

    Raises `UserError` where no run is found, `DiskError` where the page cannot be written.
    """
    from st3.report.formats import to_text
    from st3.report.found import common_folder, read_runs
    from st3.report.page import to_html
    from st3.whole_files import write_named

    page = page or common_folder(paths) / "report.html"
    results = read_runs(paths)
    write_named(page, to_html(results, page.parent))
    return f"{to_text(results)}\n\nreport     {page}", results.damaged
