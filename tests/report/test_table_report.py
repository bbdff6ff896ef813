"""From run directories to numbers, tables, plots and the page."""

import csv
import math
import re
from dataclasses import replace
from html import unescape

import pytest
from fake_runs import ENVIRONMENT
from plotly.offline import get_plotlyjs
from report_cases import make_run, make_table, series

from st3.report.formats import cells, to_block, to_csv, to_latex, to_markdown
from st3.report.notes import command, conventions, footnotes, making, remarks, sources, spans, warnings
from st3.report.page import to_html
from st3.report.results import read_results
from st3.report.table_report import write_report


@pytest.fixture
def table():
    return make_table(
        series("Dense", (0.0, (77.1, 40)), method="dense"),
        series("ST-3", (0.8, (76.0, 10)), (0.9, (75.0, 5.5)), note="Its own note."),
        series("ST-3σ", (0.9, None)),
        series("GMP", (0.8, (70.0, None)), method=None),
        series("RigL", (0.95, None)),
    )


@pytest.fixture
def runs(table, tmp_path):
    """Three seeds of ST-3 at 90 %, one of ST-3σ and of the dense network."""
    dense, _, st3, sigma, *_ = table.rows
    for seed, top1 in ((0, 74.0), (2, 75.0), (10, 77.0)):
        make_run(tmp_path, st3, seed, top1=top1)
    make_run(tmp_path, sigma, 0, top1=73.25)
    make_run(tmp_path, dense, 0, top1=78.0)
    return tmp_path


# Numbers --------------------------------------------------------------------------------------------------------------


def test_seeds_are_found_and_compared_with_what_was_published(table, runs):
    results = read_results(table, runs)
    by_name = {result.row.name: result for result in results.rows}
    st3 = by_name["ST-3, 90 %"]
    assert [run.seed for run in st3.runs] == [0, 2, 10]
    assert st3.top1.mean == pytest.approx(226 / 3)
    assert st3.difference == pytest.approx(226 / 3 - 75)
    assert st3.macs_millions.mean == 5.5
    assert by_name["ST-3σ, 90 %"].difference is None
    assert by_name["ST-3, 80 %"].runs == ()
    assert [row.label for row in results.empty] == ["RigL"]  # neither measured nor published


@pytest.mark.parametrize(
    ("off", "marked"), [(0, False), (0.005, False), (-0.005, False), (0.0051, True), (-0.0051, True)]
)
def test_the_dagger_marks_what_misses_its_target_by_more_than_half_a_point(off, marked, table, tmp_path):
    make_run(tmp_path, table.rows[2], 0)
    make_run(tmp_path, table.rows[2], 1, off=off)
    results = read_results(table, tmp_path)
    assert [result.missed for result in results.measured] == [marked]
    for text in (to_markdown(results, tmp_path), to_html(results, tmp_path)):
        assert ("†" in text) == marked
        assert ("misses the target by more than 0.5 points" in text) == marked
    assert (r"$\dagger$" in to_latex(results)) == marked


def test_the_double_dagger_marks_rows_whose_runs_warn(table, tmp_path):
    few = "the masks change only 2 times: train longer"
    _, at_80, at_90, sigma, *_ = table.rows
    make_run(tmp_path, at_80, 0, warnings=[few])
    make_run(tmp_path, at_90, 0, warnings=[few])
    make_run(tmp_path, at_90, 1, warnings=[few])
    make_run(tmp_path, sigma, 0)
    results = read_results(table, tmp_path)
    assert [cells(results, result)["method"] for result in results.measured] == ["ST-3 ‡", "ST-3 ‡", "ST-3σ"]
    for text in (to_markdown(results, tmp_path), to_html(results, tmp_path), to_latex(results)):
        plain = text.replace(r"$\ddagger$", "‡").replace(r"\%", "%")
        assert plain.count("‡") == (3 if text[0] != "<" else 3 + 2 + 3)  # a page: over sparsities and of runs, too
        mark = "</b>" if text[0] == "<" else "ST-3 ‡"
        assert plain.index(f"‡ ST-3, 80 %; ST-3, 90 %: {few}.") > plain.index(mark)
    assert [row["warnings"] for row in csv.DictReader(to_csv(results, tmp_path).splitlines())][1:3] == [few, few]


def test_a_run_that_aims_at_macs_is_held_to_its_macs(table, tmp_path):
    make_run(tmp_path, table.rows[2], 0, sparsity=0.7, target="flops")  # 90 % of the pruned layer's MACs are gone
    make_run(tmp_path, table.rows[1], 0, sparsity=0.8, target="flops", off=0.1)
    assert [result.missed for result in read_results(table, tmp_path).rows if result.runs] == [True, False]


def test_a_run_that_aims_at_time_is_held_to_its_modelled_time(table, tmp_path):
    for row, left in ((table.rows[2], 0.4), (table.rows[1], 0.82)):  # 90 % and 80 % were to be removed
        times = {"target": "latency", "modelled_ms_dense": 4.0, "modelled_ms": left, "modelled_from": "t.json"}
        make_run(tmp_path, row, 0, off=-0.3, **times)
    assert [result.missed for result in read_results(table, tmp_path).rows if result.runs] == [False, False]
    make_run(tmp_path, table.rows[1], 1, off=-0.3, **times | {"modelled_ms": 0.83})
    assert [result.missed for result in read_results(table, tmp_path).rows if result.runs] == [True, False]


def test_runs_of_a_row_in_two_precisions_are_said(table, tmp_path):
    for seed, precision in enumerate(("fp32", "bf16", "bf16")):
        make_run(tmp_path, table.rows[2], seed, environment=ENVIRONMENT | {"precision": precision})
    make_run(tmp_path, table.rows[1], 0, environment=ENVIRONMENT | {"precision": "bf16"})
    results = read_results(table, tmp_path)
    assert "Runs of one row differ in their precision, bf16, fp32: ST-3 at 90 %." in warnings(results)
    assert "(CPU threads: 1, bf16), x86_64 (CPU threads: 1, fp32)" in making(results)[1]


def test_what_departs_from_the_table_is_said(table, runs):
    st3, sigma = table.rows[2], table.rows[3]
    make_run(runs, st3, 11, typed=["epochs=4", "method=st3", "precision=bf16"])
    make_run(runs, st3, 12, typed=["method=st3"], epochs=3)
    make_run(runs, sigma, 1, finished=False)
    results = read_results(table, runs)
    assert len(results.runs) == 7
    text = to_markdown(results, runs)
    assert "2 of 7 runs depart from the table's own settings: precision=bf16, not epochs=4." in text
    assert "The runs differ in their epochs: 3, 4." in text
    assert "differ in their precision" not in text
    assert "Not finished, and not counted: st-3-sigma-90-s1." in text
    assert "Neither measured nor published yet: RigL at 95 %." in text
    assert "commit 0123456789 with changes" in text
    assert "Layers pruned in all sparse runs: 1 of 2, not conv1." in text


def test_a_name_with_a_comma_is_one_name_in_a_list(tmp_path):
    table = make_table(
        series("ST-3, not rescaled", (0.9, None)), series("ST-3", (0.9, None)), series("GMP", (0.9, None))
    )
    for row in table.rows:
        make_run(tmp_path, row, 0)
    all_pruned = tmp_path / "gmp-90-s0" / "layers.csv"
    all_pruned.write_text(all_pruned.read_text().replace("False", "True", 1))
    results = read_results(table, tmp_path)
    assert 'Not ranked, with one seed: "ST-3, not rescaled", ST-3, GMP at 90 %.' in footnotes(results)
    pruned = [line for line in remarks(results) if line.startswith("Layers")]
    assert pruned == [
        'Layers pruned in the measured runs of "ST-3, not rescaled", ST-3: 1 of 2, not conv1.',
        "Layers pruned in the measured runs of GMP: 2 of 2.",
    ]


# Tables ---------------------------------------------------------------------------------------------------------------


def test_markdown_says_it_all(table, runs):
    lines = to_markdown(read_results(table, runs), runs / "report").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    assert len({len(row) for row in rows}) == 1
    found = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
    assert found[2] == {
        "method": "ST-3",
        "sparsity (%)": "90",
        "top-1 published": "75.00",
        "top-1 measured": "75.33 ± 3.79",  # 4.303·√(7/3)/√3
        "n": "3",
        "minus published": "+0.33",
        "sparsity measured (%)": "90.00",
        "M MACs published": "5.5",
        "M MACs measured": "5.50",
        "runs": "[s0](../st-3-90-s0), [s2](../st-3-90-s2), [s10](../st-3-90-s10)",
    }
    assert found[3]["top-1 measured"] == "73.25"  # one seed has no interval
    assert found[4]["top-1 measured"] == found[4]["runs"] == "–"
    assert "- ST-3: Its own note." in lines
    assert "- Sources of the published figures: Dense, ST-3, GMP: a_paper & co." in lines


def test_csv_is_unrounded_and_complete(table, runs):
    rows = list(csv.DictReader(to_csv(read_results(table, runs), runs / "report").splitlines()))
    assert [row["method"] for row in rows] == ["Dense", "ST-3", "ST-3", "ST-3σ", "GMP"]
    assert float(rows[2]["top1_mean"]) == pytest.approx(226 / 3, abs=1e-12)
    assert float(rows[2]["top1_std"]) == pytest.approx(math.sqrt(7 / 3))  # of −4/3, −1/3, 5/3
    assert float(rows[2]["top1_half_width"]) == pytest.approx(4.302653 * math.sqrt(7 / 3) / math.sqrt(3))
    assert float(rows[2]["minus_published"]) == pytest.approx(1 / 3)
    assert (rows[3]["top1_mean"], rows[3]["top1_half_width"], rows[3]["minus_best"]) == ("73.25", "", "")
    assert (rows[2]["n"], rows[2]["seeds"], rows[2]["missed"]) == ("3", "0 2 10", "False")
    assert rows[2]["run_dirs"].split() == ["../st-3-90-s0", "../st-3-90-s2", "../st-3-90-s10"]
    assert (rows[4]["n"], rows[4]["top1_mean"], rows[4]["top1_published"]) == ("0", "", "70.0")


HOSTILE = "=cmd|'/c calc'!A1 <script>alert(1)</script> </script>\n| x | <!-- END st3 reproduce mine -->"


def test_nothing_that_comes_from_a_file_becomes_code(tmp_path):
    table = make_table(series(HOSTILE, (0.9, (71.0, None)), note=HOSTILE))
    table = replace(table, title=HOSTILE, notes=(HOSTILE,))
    [row] = table.rows
    make_run(tmp_path, row, 0, typed=[*row.overrides, f"extra={HOSTILE}"], environment=ENVIRONMENT | {"torch": HOSTILE})
    results = read_results(table, tmp_path)
    for text in (to_markdown(results, tmp_path), to_block(results, HOSTILE)):
        code = re.sub(r"```bash\n.*?\n```", "", text, flags=re.DOTALL)
        assert re.search(r"<script|</script|<!--", code) is None
        assert len([line for line in code.splitlines() if line.startswith("|")]) == 3
    page = to_html(results, tmp_path).replace(get_plotlyjs(), "")
    assert "<script>alert" not in page
    assert page.count("</script>") == len(re.findall(r"<script[ >]", page))
    cells = next(csv.reader([to_csv(results, tmp_path).split("\n", 1)[1].replace("\n", " ")]))
    assert cells[0].startswith("'=cmd")
    assert [cell for cell in cells if re.match(r"[=+@]", cell)] == []


def test_latex_is_balanced(table, runs):
    text = to_latex(read_results(table, runs))
    stack = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    assert text.count("\\toprule") == text.count("\\midrule") == text.count("\\bottomrule") == 1
    bare = re.sub(r"\\[{}%&$#_]", "", text)
    assert bare.count("{") == bare.count("}")
    assert bare.count("$") % 2 == 0
    assert [line for line in bare.splitlines() if "%" in line] == ["% needs \\usepackage{booktabs}"]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text)[1])
    rows = [line for line in bare.splitlines() if line.endswith("\\\\")]
    assert len(rows) == 1 + 5
    assert {line.count("&") + 1 for line in rows} == {columns}
    assert "_" not in bare
    assert text.isascii()


def test_columns_without_content_are_left_out(tmp_path):
    table = make_table(series("ST-3", (0.9, None)))
    make_run(tmp_path, table.rows[0], 0)
    text = to_markdown(read_results(table, tmp_path), tmp_path)
    assert "top-1 measured" in text
    assert "| top-1 published" not in text
    assert "| minus" not in text
    assert "Sources" not in text


# What made it ---------------------------------------------------------------------------------------------------------


def test_days_devices_and_seeds_are_those_that_the_runs_have_recorded(table, tmp_path):
    st3 = table.rows[2]
    make_run(tmp_path, st3, 0)
    make_run(tmp_path, st3, 1, environment=ENVIRONMENT | {"date": "2026-11-22"})
    first, second = making(read_results(table, tmp_path))
    assert first == "2 runs of 4 epochs, resnet20 on fake, seeds 0..1, 0.02 hours together."
    assert "on x86_64 (CPU threads: 1); git commit 0123456789 with changes; 2026-11-22 to 2026-11-24." in second
    make_run(tmp_path, st3, 2, environment={"device": "a GPU", "cuda": "13", "cpu_threads": 8})  # of an earlier version
    _, second = making(read_results(table, tmp_path))
    assert "on x86_64 (CPU threads: 1), a GPU; " in second
    assert second.endswith("2026-11-22 to 2026-11-24 (1 without a date).")


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([0], "0"), ([1, 0], "0..1"), ([7, 0, 2, 1, 1], "0..2,7"), ([0, 2, 3, 10, 11, 12], "0,2..3,10..12")],
)
def test_seeds_are_named_as_they_are_typed(numbers, text):
    assert spans(numbers) == text


def test_the_command_makes_the_runs_that_are_there(table, tmp_path):
    dense, at_80, at_90, sigma, _, rigl = table.rows

    def found():
        return command(read_results(table, tmp_path), "my table.yaml").removeprefix("st3 reproduce 'my table.yaml' ")

    assert found() == ""
    for row in (at_90, sigma):
        for seed in (0, 1):
            make_run(tmp_path, row, seed, typed=["method=st3", "precision=bf16"])  # without the table's epochs=4
    assert found() == "--seeds 0..1 --rows '*-90' precision=bf16"
    make_run(tmp_path, rigl, 0)  # in another precision: what not all runs have been told is left out
    assert found() == "--seeds 0..1 --rows '*-90,rigl-95'"
    make_run(tmp_path, dense, 0)
    make_run(tmp_path, at_80, 4)
    assert found() == "--seeds 0..1,4"


def test_a_block_says_all_by_itself_and_links_to_nothing(table, runs):
    block = to_block(read_results(table, runs), "mine")
    assert block.startswith("```bash\nst3 reproduce mine --seeds 0,2,10 --rows 'dense-0,*-90'\n```\n\n")
    assert "](" not in block
    assert "| ST-3 | 90 | 75.00 | 75.33 ± 3.79 | 3 |" in block
    assert "st-3-90-s0" not in block
    for said in ("git commit 0123456789", "PyTorch 2", "2026-11-24", "5 runs of 4 epochs", "- ST-3: Its own note."):
        assert said in block
    assert block.index("± is the half-width") < block.index("<details>") < block.index("- Top-1 is in percent")


# The page -------------------------------------------------------------------------------------------------------------


def without_plotly(page):
    """The text of a page, without the script of plotly.js, which is not ours and knows addresses."""
    return page.read_text(encoding="utf-8").replace(get_plotlyjs(), "")


def test_the_page_needs_nothing_else(table, runs):
    page, _ = write_report(table, runs)
    text = without_plotly(page)
    assert not re.findall(r"https?:|src=|@import|url\(", text)
    assert re.findall(r"<link [^>]*>", text) == ['<link rel="icon" href="data:,">']
    links = [link for link in re.findall(r'href="([^"]*)"', text) if link.startswith("..")]
    assert len(links) == 5
    assert all((page.parent / link).is_dir() for link in links)
    assert '<meta name="viewport"' in text
    assert "@media print" in text
    assert "50 % of A_B &amp; C" in text


def test_published_figures_stand_below_the_measured_ones(table, runs):
    page, _ = write_report(table, runs)
    pivot = without_plotly(page).partition('<table class="pivot">')[2].partition("</table>")[0]
    rows = [re.sub(r"<[^>]+>", " ", row.replace("&nbsp;", " ")).split() for row in pivot.split("<tr>")[1:]]
    assert rows == [
        ["method", "0", "%", "80", "%", "90", "%"],
        ["Dense", "78.00", "77.10"],
        ["ST-3", "76.00", "75.33", "±", "3.79", "n", "=", "3", "75.00"],
        ["ST-3σ", "73.25"],
        ["GMP", "70.00"],
    ]
    assert "n = 1 where nothing else is said. n = 1 has no interval. Grey: published." in without_plotly(page)


def test_all_that_is_said_of_the_results_is_on_the_page(table, runs):
    make_run(runs, table.rows[3], 2, off=0.1, warnings=["the masks change only twice: train longer"])
    page, results = write_report(table, runs)
    text = unescape(without_plotly(page))
    said = (*warnings(results), *footnotes(results), *remarks(results), *conventions(results), *sources(results))
    assert [line for line in (*said, *making(results)) if line not in text] == []


def test_the_same_runs_give_the_same_files(table, runs):
    report = runs / "report"
    write_report(table, runs)
    before = {path.name: path.read_bytes() for path in report.iterdir()}
    assert set(before) == {"index.html", "table.csv", "table.md", "table.tex"}
    write_report(table, runs)
    assert before == {path.name: path.read_bytes() for path in report.iterdir()}


def test_without_any_run_there_is_a_report_too(table, tmp_path):
    page, results = write_report(table, tmp_path)
    assert results.runs == []
    assert len(re.findall('data-chart="', without_plotly(page))) == 2  # what was published
    nothing = make_table(series("ST-3", (0.9, None)))
    page, _ = write_report(nothing, tmp_path)
    assert "Neither measured nor published yet: ST-3 at 90 %." in page.read_text(encoding="utf-8")
