"""Which rows are ranked, which are inside the noise of the best, and how that is shown."""

import csv
import math
import re
from dataclasses import replace

import pytest
from report_cases import make_run, make_table, series

from st3.errors import UserError
from st3.report.formats import cells, headings, to_block, to_csv, to_latex, to_markdown
from st3.report.notes import footnotes
from st3.report.page import to_html
from st3.report.results import read_results

T2 = 4.302653
"""Student's t for two degrees of freedom, 95 % of both sides, from a printed table."""


@pytest.fixture
def table():
    return make_table(*(series(label, (0.9, None)) for label in ("A", "B", "C")))


def measure(folder, table, *top1, **changes):
    """Runs of seeds 0, 1, … of each row; None where there is none."""
    for row, values in zip(table.rows, top1, strict=True):
        for seed, value in enumerate(values):
            if value is not None:
                make_run(folder, row, seed, top1=value, **changes)
    return read_results(table, folder)


def columns(results, name):
    return [cells(results, result)[name] for result in results.rows]


def in_noise(results):
    return "".join(result.row.label for result in results.rows if results.inside_noise(result))


def test_differences_from_the_best_are_paired_by_seed(table, tmp_path):
    """A's differences from B are −1, −2 and −3, C's −1.9, −2 and −2.1: only the second interval excludes 0."""
    results = measure(tmp_path, table, (79, 80, 81), (80, 82, 84), (78.1, 80, 81.9))
    assert columns(results, "minus best") == [f"−2.00 ± {T2 / math.sqrt(3):.2f}", "best", "−2.00 ± 0.25"]
    assert in_noise(results) == "AB"
    [contest] = results.contests
    assert contest.minus_best(results.rows[2]).half_width == pytest.approx(T2 * 0.1 / math.sqrt(3), rel=1e-6)
    rows = list(csv.DictReader(to_csv(results, tmp_path).splitlines()))
    assert [float(row["minus_best"]) for row in rows] == pytest.approx([-2, 0, -2])
    assert [float(row["minus_best_half_width"]) for row in rows] == pytest.approx(
        [T2 / math.sqrt(3), 0, T2 * 0.1 / math.sqrt(3)], rel=1e-6
    )
    assert [row["minus_best_n"] for row in rows] == ["3", "3", "3"]


@pytest.mark.parametrize(("below", "noise"), [(2.4, "AB"), (2.6, "B")])
def test_the_noise_ends_where_the_interval_leaves_0(below, noise, table, tmp_path):
    """The differences are 1 apart, so that the half-width is 4.303/√3 = 2.484."""
    results = measure(tmp_path, table, (80 - below + 1, 80 - below, 80 - below - 1), (80, 80, 80), ())
    assert in_noise(results) == noise


def test_the_lead_over_the_next_row_is_said(table, tmp_path):
    results = measure(tmp_path, table, (79, 80, 81), (80, 82, 84), (70, 70, 70))
    lead = "At 90 % sparsity after 4 epochs, B minus the next row, A: +2.00 ± 2.48 points, paired over 3 seeds"
    assert f"{lead}; which of them is better is not shown." in footnotes(results)
    results = measure(tmp_path, table, (78.1, 80, 81.9), (80, 82, 84), (70, 70, 70))
    assert f"{lead.replace('2.48', '0.25')}." in footnotes(results)


def test_bold_in_every_format(table, tmp_path):
    results = measure(tmp_path, table, (79, 80, 81), (80, 82, 84), (78.1, 80, 81.9))
    shown = [f"80.00 ± {T2 / math.sqrt(3):.2f}", f"82.00 ± {T2 * 2 / math.sqrt(3):.2f}"]
    for text in (to_markdown(results, tmp_path), to_block(results, "mine")):
        assert re.findall(r"\*\*(.*?)\*\*", text) == shown
    page = to_html(results, tmp_path)
    assert re.findall(r'<td class="best">(.*?)</td>', page) == [*shown, *shown]  # over method and sparsity, and by row
    assert "td.best { font-weight" in page
    assert re.findall(r"\\textbf\{(.*?)\} &", to_latex(results)) == [each.replace("±", r"$\pm$") for each in shown]
    for text in (to_markdown(results, tmp_path), to_html(results, tmp_path), to_latex(results)):
        assert "every row inside the noise of the best" in text
        assert "half-width of the 95" in text
    assert "Each interval is for its own pair, not corrected" in to_markdown(results, tmp_path)


def test_one_seed_cannot_be_ranked_and_that_is_said(table, tmp_path):
    results = measure(tmp_path, table, (99,), (80, 82), (79, 80.5))
    assert columns(results, "minus best")[:2] == ["–", "best"]
    assert in_noise(results) == "BC"
    assert "Not ranked, with one seed: A at 90 %." in footnotes(results)


def test_without_a_second_row_of_several_seeds_nothing_is_ranked(table, tmp_path):
    results = measure(tmp_path, table, (99,), (80, 82), ())
    assert results.contests == []
    assert "minus best" not in headings(results)
    assert in_noise(results) == ""
    said = footnotes(results)
    assert "Not ranked, with one seed: A at 90 %." in said
    assert "Not ranked, without two seeds in common with the best other row of as many epochs: B at 90 %." in said
    assert not any(line.startswith("Bold") for line in said)


def test_a_row_alone_at_its_sparsity_is_neither_ranked_nor_excused(tmp_path):
    table = make_table(series("Dense", (0.0, None), method="dense"), series("A", (0.9, None)), series("B", (0.9, None)))
    results = measure(tmp_path, table, (90,), (80, 81), (70, 71))
    assert columns(results, "minus best")[0] == "–"
    assert in_noise(results) == "A"
    assert not any("Not ranked" in line for line in footnotes(results))


def test_only_common_seeds_count_and_two_are_needed(table, tmp_path):
    results = measure(tmp_path, table, (80, 81, 82), (None, 79, 80, 90), (None, None, 70, 75))
    best = results.contests[0].best.row.label
    assert best == "B"  # by its own mean, 83
    assert columns(results, "minus best") == ["+2.00 ± 0.00 (2 pairs)", "best", "−12.50 ± 31.77"]
    assert in_noise(results) == "ABC"


def test_a_single_seed_in_common_with_the_best_has_no_interval(table, tmp_path):
    results = measure(tmp_path, table, (80, 81, 82), (None, 90, 91), (79, 80))
    assert columns(results, "minus best") == ["−9.00 ± 0.00 (2 pairs)", "best", "–"]
    assert in_noise(results) == "B"
    said = "Not ranked, without two seeds in common with the best other row of as many epochs: C at 90 %."
    assert said in footnotes(results)


def test_rows_are_ranked_within_their_budget_of_epochs_only(table, tmp_path):
    table = make_table(*(series(label, (0.9, None)) for label in "ABCDE"))
    a, b, c, d, e = table.rows
    for seed in (0, 1):
        make_run(tmp_path, a, seed, top1=80 + seed, epochs=4)
        make_run(tmp_path, b, seed, top1=70 + seed, epochs=4)
        make_run(tmp_path, c, seed, top1=90 + seed, epochs=40)
        make_run(tmp_path, d, seed, top1=85 + seed, epochs=40)
        make_run(tmp_path, e, seed, top1=99, epochs=4 + 36 * seed)
    results = read_results(table, tmp_path)
    assert [(contest.epochs, contest.best.row.label) for contest in results.contests] == [(4, "A"), (40, "C")]
    assert columns(results, "minus best") == ["best", "−10.00 ± 0.00", "best", "−5.00 ± 0.00", "–"]
    assert columns(results, "epochs") == ["4", "4", "40", "40", "4, 40"]
    assert in_noise(results) == "AC"
    assert "Not ranked, as their runs differ in their epochs: E at 90 %." in footnotes(results)


def test_a_row_that_misses_its_sparsity_does_not_win(table, tmp_path):
    for seed in (0, 1):
        make_run(tmp_path, table.rows[0], seed, top1=99, off=-0.01)
    results = measure(tmp_path, table, (), (80, 82), (79, 80.5))
    assert results.contests[0].best.row.label == "B"
    assert "Not ranked, as a run misses the sparsity: A at 90 %." in footnotes(results)


def test_epochs_are_a_column_only_where_they_differ(table, tmp_path):
    assert "epochs" not in headings(measure(tmp_path, table, (80, 82), (79, 80.5), ()))


def test_a_table_may_rank_by_held_out_images(table, tmp_path):
    by_validation = replace(table, accuracy="validation")
    for row, values in zip(table.rows, (range(3), range(10, 13), range(20, 23)), strict=True):
        for seed, value in enumerate(values):
            make_run(tmp_path, row, seed, top1=90.0 - value, val_top1=60.0 + value)
    results = read_results(by_validation, tmp_path)
    assert columns(results, "top-1 measured")[0].startswith("61.00 ± ")
    assert columns(results, "minus best") == ["−20.00 ± 0.00", "−10.00 ± 0.00", "best"]
    assert columns(read_results(table, tmp_path), "minus best")[0] == "best"
    for text in (to_markdown(results, tmp_path), to_html(results, tmp_path)):
        assert "Top-1 is in percent of held-out training images" in text
        assert "percent of the test images" not in text


def test_a_run_that_holds_nothing_out_cannot_be_ranked_by_it(table, tmp_path):
    make_run(tmp_path, table.rows[0], 0)
    with pytest.raises(UserError, match=r"a-90-s0 holds no images out, by which this table ranks"):
        read_results(replace(table, accuracy="validation"), tmp_path)
