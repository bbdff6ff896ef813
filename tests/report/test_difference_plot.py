"""The plot of paired differences, read back from its figure."""

import math
from dataclasses import replace

import pytest
from report_cases import make_run, make_table, series

from st3.report.difference_plot import paired_differences
from st3.report.results import read_results
from st3.report.style import styles


@pytest.fixture
def table():
    return make_table(*(series(label, (0.9, None), (0.95, None)) for label in ("ST-3", "RigL", "GMP", "SET")))


@pytest.fixture
def runs(table, tmp_path):
    """At 90 %: RigL is 1, 2, 3 above ST-3, GMP 2 below; SET has one seed, 5 above. At 95 %: ST-3 has one seed."""
    st3, st3_95, rigl, rigl_95, gmp, gmp_95, set_, _ = table.rows
    for seed, base in enumerate((70.0, 71.0, 75.0)):
        make_run(tmp_path, st3, seed, top1=base)
        make_run(tmp_path, rigl, seed, top1=base + 1 + seed)
        make_run(tmp_path, gmp, seed, top1=base - 2)
        make_run(tmp_path, rigl_95, seed, top1=base)
        make_run(tmp_path, gmp_95, seed, top1=base - 4)
    make_run(tmp_path, set_, 0, top1=75)
    make_run(tmp_path, st3_95, 0, top1=60)
    return tmp_path


def names(axes):
    return [text.get_text() for text in axes.get_yticklabels()]


def dots(axes):
    """Of each row."""
    return [list(line.get_xdata()) for line in axes.get_lines() if line.get_marker() == "."]


def intervals(axes):
    """Of each row that has one: mean, lower and upper end, marker."""
    found = []
    for drawn in axes.containers:
        line, _, (bar,) = drawn.lines
        (start, _), (end, _) = bar.get_segments()[0]
        found.append((line.get_xdata()[0], start, end, line.get_marker()))
    return found


def test_a_panel_for_each_sparsity_with_the_tables_reference(table, runs):
    figure = paired_differences(read_results(replace(table, reference="ST-3"), runs))
    at_90, at_95 = figure.axes
    assert at_90.get_title() == "90 % sparsity, 4 epochs: minus ST-3"
    assert names(at_90) == ["SET (n = 1)", "RigL (n = 3)", "GMP (n = 3)"]  # the highest first
    assert dots(at_90) == [[5], [1, 2, 3], [-2, -2, -2]]
    half_width = 4.302653 / math.sqrt(3)
    look = styles(["RigL", "GMP"])
    (mean, low, high, marker), gmp = intervals(at_90)  # SET, with one seed, has a dot and no interval
    assert (mean, low, high) == pytest.approx((2, 2 - half_width, 2 + half_width), rel=1e-6)
    assert marker == look["RigL"][1]
    assert gmp == (-2, -2, -2, look["GMP"][1])
    assert [text.get_text() for text in at_90.texts] == ["+5.00", f"+2.00 ± {half_width:.2f}", "−2.00 ± 0.00"]
    assert any(list(line.get_xdata()) == [0, 0] for line in at_90.get_lines())  # the line at zero

    assert at_95.get_title() == "95 % sparsity, 4 epochs: minus RigL, the best"  # ST-3 is not ranked there
    assert names(at_95) == ["GMP (n = 3)", "ST-3 (n = 1)"]
    assert dots(at_95) == [[-4, -4, -4], [-10]]


def test_without_a_reference_the_best_row_is_one(table, runs):
    at_90, _ = paired_differences(read_results(table, runs)).axes
    assert at_90.get_title() == "90 % sparsity, 4 epochs: minus RigL, the best"
    assert names(at_90)[1:] == ["ST-3 (n = 3)", "GMP (n = 3)"]
    assert dots(at_90)[1] == [-1, -2, -3]


def test_wide_intervals_leave_the_picture_and_dots_do_not(tmp_path):
    table = make_table(series("A", (0.9, None)), series("B", (0.9, None)))
    for seed in (0, 1):
        make_run(tmp_path, table.rows[0], seed, top1=80)
        make_run(tmp_path, table.rows[1], seed, top1=78 - seed)
    [axes] = paired_differences(read_results(table, tmp_path)).axes
    low, high = axes.get_xlim()
    [(_, start, end, _)] = intervals(axes)
    assert (start, end) == pytest.approx((-2.5 - 12.7062 / 2, -2.5 + 12.7062 / 2), rel=1e-5)
    assert start < low < -3
    assert 0 < high < end


def test_nothing_is_drawn_where_nothing_is_ranked(table, tmp_path):
    make_run(tmp_path, table.rows[0], 0)
    make_run(tmp_path, table.rows[2], 0)
    assert paired_differences(read_results(table, tmp_path)) is None


def test_another_sparsity_has_its_place_and_empty_ones_are_hidden(tmp_path):
    sparsities = [(sparsity, None) for sparsity in (0.8, 0.9, 0.95)]
    table = make_table(series("A", *sparsities), series("B", *sparsities))
    for row in table.rows:
        for seed in (0, 1):
            make_run(tmp_path, row, seed, top1=80 + seed)
    figure = paired_differences(read_results(table, tmp_path))
    assert [axes.get_visible() for axes in figure.axes] == [True, True, True, False]
