"""The results of a table as one HTML page that needs nothing else: no network, no other file, no script."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from st3.report.formats import MEASURED, NOTHING, cells, headings, link
from st3.report.notes import conventions, footnotes, making, remarks, sources, warnings
from st3.report.results import Results

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 66rem; margin: 0 auto;
       padding: 1rem; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 0.5rem 0 1rem; }
h2 { font-size: 1.15rem; margin: 2rem 0 0.5rem; }
.warning { border-left: 4px solid #D55E00; background: #FBEFE6; padding: 0.4rem 0.8rem; margin: 0.5rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.875rem; font-variant-numeric: tabular-nums; min-width: 100%; }
th, td { padding: 0.2rem 0.55rem; text-align: right; white-space: nowrap; }
th { border-bottom: 2px solid #222; vertical-align: bottom; white-space: normal; min-width: 3.2rem; }
th.text, td.text { text-align: left; }
tr.first td { border-top: 1px solid #bbb; }
td.best { font-weight: 600; background: #E3EFF7; }
th:first-child, td:first-child { position: sticky; left: 0; background: #fff; }
a { color: #0072B2; }
figure { margin: 1.5rem 0; }
figure img { display: block; max-width: 100%; height: auto; }
figcaption, .small { font-size: 0.875rem; color: #555; }
ul { padding-left: 1.2rem; }
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  table { font-size: 7.5pt; min-width: 0; width: 100%; }
  th, td { padding: 1pt 2.5pt; }
  td:first-child { white-space: normal; }
  .wide { overflow: visible; }
  figure img { max-height: 11.5cm; }
  figure, tr { break-inside: avoid; }
  thead { display: table-header-group; }
  h2 { break-after: avoid; }
}
"""


def to_html(results: Results, folder: Path, plots: Mapping[str, tuple[str, str]]) -> str:
    """The page that is to lie in `folder`, where NAME.svg lies for each of `plots` (NAME → caption, what it shows)."""
    title = escape(results.table.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>{title}</h1>
{_paragraphs(warnings(results), "warning")}
{_table(results, folder)}
{_paragraphs(footnotes(results), "small")}
{"".join(_figure(folder / f"{name}.svg", *text) for name, text in plots.items())}
<h2>What is trained and counted</h2>
{_list((*remarks(results), *conventions(results), *sources(results)))}
{f"<h2>How it was made</h2>{_list(making(results))}" if results.runs else ""}
</body>
</html>
"""


def _table(results: Results, folder: Path) -> str:
    columns = headings(results)
    heads = "".join(f'<th{_class(name)} scope="col">{escape(name)}</th>' for name in [*columns, "runs"])
    lines, before = [], ""
    for result in results.rows:
        text, best = cells(results, result), MEASURED if results.inside_noise(result) else None
        links = ", ".join(f'<a href="{escape(link(run, folder))}/">s{run.seed}</a>' for run in result.runs) or NOTHING
        filled = "".join(f"<td{_class(name, best)}>{escape(text[name])}</td>" for name in columns)
        first = ' class="first"' if result.row.label != before else ""
        lines.append(f'<tr{first}>{filled}<td class="text">{links}</td></tr>')
        before = result.row.label
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _class(name: str, best: str | None = None) -> str:
    return ' class="best"' if name == best else ' class="text"' if name in ("method", "runs") else ""


def _figure(picture: Path, caption: str, shows: str) -> str:
    data = base64.b64encode(picture.read_bytes()).decode()
    return (
        f'<figure><img alt="{escape(shows)}" src="data:image/svg+xml;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>\n"
    )


def _paragraphs(texts: Sequence[str], kind: str) -> str:
    return "".join(f'<p class="{kind}">{escape(text)}</p>' for text in texts)


def _list(texts: Iterable[str]) -> str:
    return f'<ul class="small">{"".join(f"<li>{escape(text)}</li>" for text in texts)}</ul>'
