"""The charts of a table: what is drawn where, and on which scale."""

import math
from dataclasses import replace

import pytest
from report_cases import make_run, make_table, series

from st3.report.charts import (
    accuracy_over_macs,
    accuracy_over_sparsity,
    layer_sparsity,
    nines,
    paired_differences,
    training_curves,
)
from st3.report.results import read_results
from st3.report.run_charts import SPAN
from st3.report.style import styles


@pytest.fixture
def table():
    return make_table(
        series("Dense", (0.0, (77.1, 40)), method="dense"),
        series("ST-3", (0.8, (76.0, 10)), (0.9, (75.0, 5.5))),
        series("ST-3σ", (0.9, None)),
        series("GMP", (0.8, (70.0, None)), method=None),
    )


@pytest.fixture
def results(table, tmp_path):
    """Three seeds of ST-3 at 90 %, one of ST-3σ and of the dense network."""
    dense, _, st3, sigma, *_ = table.rows
    for seed, top1 in ((0, 74.0), (2, 75.0), (10, 77.0)):
        make_run(tmp_path, st3, seed, top1=top1)
    make_run(tmp_path, sigma, 0, top1=73.25)
    make_run(tmp_path, dense, 0, top1=78.0)
    return read_results(table, tmp_path)


@pytest.mark.parametrize(("sparsity", "expected"), [(0, 0), (0.9, 1), (0.99, 2), (0.8, -math.log10(0.2)), (1, 4)])
def test_sparsities_are_drawn_by_their_nines(sparsity, expected):
    assert nines(sparsity) == pytest.approx(expected)


def points(chart):
    """(label, colour, symbol, x, y) of each trace with markers."""
    return [
        (t["legendgroup"], t["marker"]["color"], t["marker"]["symbol"], pytest.approx(t["x"]), pytest.approx(t["y"]))
        for t in chart.data
        if "markers" in t["mode"]
    ]


def test_measured_is_filled_published_hollow_in_the_colour_of_the_method(table, results):
    look = styles(each.label for each in table.series)
    (st3, st3_symbol), (sigma, sigma_symbol), (gmp, gmp_symbol) = look["ST-3"], look["ST-3σ"], look["GMP"]
    chart = accuracy_over_sparsity(results)
    assert points(chart) == [
        ("ST-3", st3, st3_symbol, [1], [226 / 3]),
        ("ST-3", st3, f"{st3_symbol}-open", [-math.log10(0.2), 1], [76, 75]),
        ("ST-3σ", sigma, sigma_symbol, [1], [73.25]),
        ("GMP", gmp, f"{gmp_symbol}-open", [-math.log10(0.2)], [70]),
    ]
    assert [t["y"] for t in chart.data if t["legendgroup"] == "Dense"] == [[78, 78], [77.1, 77.1]]
    assert chart.layout["xaxis"]["ticktext"] == ["80", "90"]
    assert chart.caption.endswith(
        "Filled: measured here, with the 95 % interval where there are several seeds; hollow: published."
    )
    macs = points(accuracy_over_macs(results))
    assert ("ST-3", st3, f"{st3_symbol}-open", [10, 5.5], [76, 75]) in macs
    assert not [each for each in macs if each[0] == "GMP"]  # no MACs were published


def test_intervals_are_drawn_and_hovering_says_how_many_seeds(results):
    by_label = {t["legendgroup"]: t for t in accuracy_over_sparsity(results).data if "error_y" in t}
    assert by_label["ST-3"]["error_y"]["array"] == [pytest.approx(3.79, abs=0.01)]
    assert "top-1 75.33 ± 3.79 % (n = 3)" in by_label["ST-3"]["text"][0]
    assert by_label["ST-3σ"]["error_y"]["array"] == [0]
    assert "top-1 73.25 % (n = 1, no interval)" in by_label["ST-3σ"]["text"][0]


def test_the_legend_shows_each_series_once_and_hides_it_as_a_whole(results):
    data = accuracy_over_sparsity(results).data
    assert [t["legendgroup"] for t in data if t["showlegend"]] == ["Dense", "ST-3", "ST-3σ", "GMP"]


def test_small_differences_do_not_fill_an_axis(tmp_path):
    table = make_table(series("A", (0.8, None), (0.9, None)))
    make_run(tmp_path, table.rows[0], 0, top1=70.0)
    make_run(tmp_path, table.rows[1], 0, top1=70.1)
    low, high = accuracy_over_sparsity(read_results(table, tmp_path)).layout["yaxis"]["range"]
    assert high - low >= SPAN
    assert low < 70 < 70.1 < high


def test_one_sparsity_is_drawn_row_by_row(tmp_path):
    table = make_table(
        series("Dense", (0.0, None), method="dense"), series("ST-3", (0.9, (75, 1))), series("B", (0.9, None))
    )
    make_run(tmp_path, table.rows[1], 0)
    make_run(tmp_path, table.rows[2], 0)
    chart = accuracy_over_sparsity(read_results(table, tmp_path))
    assert [t["y"] for t in chart.data] == [["ST-3"], ["ST-3"], ["B"]]
    assert chart.layout["yaxis"]["categoryarray"] == ["B", "ST-3"]  # from below
    assert "at 90 % sparsity" in chart.layout["xaxis"]["title"]["text"]


def test_the_map_has_a_cell_for_each_measured_row_and_layer(results):
    heat, *dead = layer_sparsity(results).data
    assert heat["z"] == [[None, pytest.approx(1)], [None, pytest.approx(1)]]  # conv1 is not pruned
    assert (heat["x"], heat["y"], dead) == (["conv1", "conv2"], ["ST-3, 90 %", "ST-3σ, 90 %"], [])


def test_layers_that_are_wholly_zero_are_crossed_out(tmp_path):
    table = make_table(series("A", (0.9, None)))
    make_run(tmp_path, table.rows[0], 0, off=0.1)
    chart = layer_sparsity(read_results(table, tmp_path))
    assert (chart.data[1]["x"], chart.data[1]["y"]) == (["conv2"], ["A, 90 %"])
    assert "Crossed out in red: wholly zero in at least one run." in chart.caption


def test_a_curve_for_each_run(results):
    chart = training_curves(results)
    assert [t["legendgroup"] for t in chart.data] == ["Dense", "ST-3", "ST-3", "ST-3", "ST-3σ"]
    assert chart.data[1]["x"] == [2, 3, 4]  # epochs with an evaluation
    assert chart.data[1]["y"] == [37, 55.5, 74]


def test_differences_from_the_reference_are_means_intervals_and_dots(tmp_path):
    table = make_table(*(series(label, (0.9, None)) for label in "ABC"))
    for row, values in zip(table.rows, ((79, 80, 81), (80, 82, 84), (78.1, 80, 81.9)), strict=True):
        for seed, top1 in enumerate(values):
            make_run(tmp_path, row, seed, top1=top1)
    [chart] = paired_differences(read_results(table, tmp_path))
    assert chart.title == "90 % sparsity, 4 epochs: minus B, the best"
    assert chart.layout["yaxis"]["categoryarray"] == ["C", "A"]
    dots, means = chart.data[::2], chart.data[1::2]
    assert [t["x"] for t in dots] == [pytest.approx([-1, -2, -3]), pytest.approx([-1.9, -2, -2.1])]
    assert [t["x"] for t in means] == [[pytest.approx(-2)], [pytest.approx(-2)]]
    assert [t["error_x"]["array"][0] for t in means] == [pytest.approx(2.484, abs=1e-3), pytest.approx(0.248, abs=1e-3)]
    low, high = chart.layout["xaxis"]["range"]
    assert low < -3 < 0 < high


def test_the_tables_own_reference_is_taken_where_it_is_ranked(tmp_path):
    table = make_table(*(series(label, (0.9, None), (0.95, None)) for label in ("ST-3", "RigL", "SET")))
    st3, st3_95, rigl, rigl_95, set_, set_95 = table.rows
    for seed, base in enumerate((70.0, 71.0, 75.0)):
        for row, top1 in ((st3, base), (rigl, base + 1 + seed), (rigl_95, base), (set_95, base - 4)):
            make_run(tmp_path, row, seed, top1=top1)
    make_run(tmp_path, set_, 0, top1=75)
    make_run(tmp_path, st3_95, 0, top1=60)
    at_90, at_95 = paired_differences(read_results(replace(table, reference="ST-3"), tmp_path))
    assert at_90.title == "90 % sparsity, 4 epochs: minus ST-3"
    assert at_90.layout["yaxis"]["ticktext"] == ["SET (n = 1)", "RigL (n = 3)"]  # the highest first
    assert [each["text"] for each in at_90.layout["annotations"]] == ["+5.00", "+2.00 ± 2.48"]
    assert len(at_90.data) == 3  # SET, with one seed, has a dot and no interval
    assert at_95.title == "95 % sparsity, 4 epochs: minus RigL, the best"  # ST-3 is not ranked there
    assert at_95.layout["yaxis"]["ticktext"] == ["SET (n = 3)", "ST-3 (n = 1)"]


def test_wide_intervals_leave_the_picture_and_dots_do_not(tmp_path):
    table = make_table(series("A", (0.9, None)), series("B", (0.9, None)))
    for seed in (0, 1):
        make_run(tmp_path, table.rows[0], seed, top1=80)
        make_run(tmp_path, table.rows[1], seed, top1=78 - seed)
    [chart] = paired_differences(read_results(table, tmp_path))
    assert chart.data[1]["error_x"]["array"] == [pytest.approx(12.7062 / 2, rel=1e-5)]
    low, high = chart.layout["xaxis"]["range"]
    assert -2.5 - 12.7062 / 2 < low < -3
    assert 0 < high < -2.5 + 12.7062 / 2


def test_without_a_contest_there_are_no_differences(results):
    assert paired_differences(results) == []
