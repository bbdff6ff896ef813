"""Intervals against closed forms and printed tables."""

import math

import numpy as np
import pytest

from st3.report.statistics import paired_differences, statistic, t_quantile


def test_mean_and_sample_standard_deviation():
    one = statistic([3.0])
    assert (one.mean, one.std, one.half_width, one.n) == (3.0, None, None, 1)
    three = statistic([1.0, 2.0, 4.0])
    assert three.mean == pytest.approx(7 / 3)
    assert three.std == pytest.approx(math.sqrt(7 / 3))  # (16 + 1 + 25) / 9 over n − 1 = 2
    assert three.n == 3


@pytest.mark.parametrize(
    ("df", "t"),
    [
        (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262),
        (10, 2.228), (15, 2.131), (20, 2.086), (29, 2.045), (30, 2.042), (60, 2.000), (120, 1.980), (10_000, 1.960),
    ],
)  # fmt: skip
def test_the_quantile_is_that_of_printed_tables(df, t):
    assert t_quantile(df) == pytest.approx(t, abs=5.1e-4)


def test_the_quantile_to_the_last_digits_where_it_has_a_closed_form():
    assert t_quantile(1) == pytest.approx(math.tan(math.pi / 2 * 0.95), rel=1e-12)
    assert t_quantile(2) == pytest.approx(0.95 * math.sqrt(2 / (1 - 0.95**2)), rel=1e-12)  # of t/√(2 + t²) = 0.95


@pytest.mark.parametrize("df", [3, 4, 11, 24])
def test_95_percent_of_the_density_lie_within_the_quantile(df):
    t = np.linspace(0, t_quantile(df), 20_001)
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    density = scale * (1 + t**2 / df) ** (-(df + 1) / 2)
    assert 2 * np.trapezoid(density, t) == pytest.approx(0.95, abs=1e-8)


def test_the_interval_of_two_and_of_five_by_hand():
    two = statistic([80.0, 81.0])
    assert two.half_width == pytest.approx(12.7062 * 0.5, rel=1e-5)  # s/√2 = 1/2
    five = statistic([1.0, 2.0, 3.0, 4.0, 5.0])
    assert five.half_width == pytest.approx(2.77645 * math.sqrt(2.5) / math.sqrt(5), rel=1e-5)
    assert statistic([7.0, 7.0, 7.0]).half_width == 0


def test_differences_are_of_the_seeds_in_common():
    a, b = {0: 80.0, 1: 82.0, 7: 85.0}, {7: 84.0, 1: 81.5, 3: 0.0}
    assert paired_differences(a, b) == [0.5, 1.0]
    assert paired_differences(a, {2: 1.0}) == []


def test_what_seeds_do_to_both_cancels():
    luck = [0.0, 5.0, -3.0, 8.0]
    a = {seed: 80 + luck[seed] for seed in range(4)}
    b = {seed: 79 + luck[seed] for seed in range(4)}
    assert statistic(list(a.values())).half_width > 7
    assert statistic(paired_differences(a, b)).half_width == 0
