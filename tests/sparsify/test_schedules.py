"""Sparsity by step: both ends of every phase, and what the settings make of a length of training."""

import pytest

from st3 import UserError
from st3.durations import Length
from st3.sparsify import SCHEDULES, AlternatingPhases, Constant, PolynomialRamp


def test_cubic_ramp_closed_form():
    ramp = PolynomialRamp(final=0.8, start=10, end=30)
    assert [ramp.value(t) for t in (0, 9, 10)] == [0, 0, 0]
    assert ramp.value(20) == pytest.approx(0.8 * (1 - 0.5**3))
    assert ramp.value(25) == pytest.approx(0.8 * (1 - 0.25**3))


def test_ramp_is_exactly_the_target_from_its_end_on():
    ramp = PolynomialRamp(final=0.9, start=3, end=7)
    assert ramp.value(6) < 0.9
    assert [ramp.value(t) for t in (7, 8, 10**9)] == [0.9, 0.9, 0.9]


def test_power_one_is_a_line():
    ramp = PolynomialRamp(final=0.5, start=0, end=10, power=1)
    assert [ramp.value(t) for t in range(11)] == pytest.approx([0.05 * t for t in range(11)])


def test_ramp_of_no_length_is_a_jump():
    ramp = PolynomialRamp(final=0.5, start=4, end=4)
    assert [ramp.value(t) for t in (3, 4)] == [0, 0.5]


def test_alternating_phases_at_both_ends_of_each():
    phases = AlternatingPhases(final=0.9, start=10, period=5, last_dense=30, end=40)
    sparse = [*range(10, 15), *range(20, 25), *range(40, 60), 10**9]
    dense = [*range(0, 10), *range(15, 20), *range(25, 40)]
    assert {phases.value(t) for t in sparse} == {0.9}
    assert {phases.value(t) for t in dense} == {0.0}


def test_alternating_phases_as_published():
    """Of 100 epochs: dense 0–10, sparse 10–15, dense 15–20, … sparse 70–75, dense 75–85, sparse from 85 on."""
    steps = 7  # of one epoch
    phases = AlternatingPhases(final=0.8, start=10 * steps, period=5 * steps, last_dense=75 * steps, end=85 * steps)
    values = [phases.value(t) for t in range(100 * steps)]
    changes = [t / steps for t in range(1, len(values)) if values[t] != values[t - 1]]
    assert changes == [10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85]
    assert (values[0], values[-1]) == (0, 0.8)


def test_the_last_dense_phase_cuts_a_sparse_one_short():
    phases = AlternatingPhases(final=0.5, start=2, period=4, last_dense=4, end=5)
    assert [phases.value(t) for t in range(8)] == [0, 0, 0.5, 0.5, 0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ({"start": 0, "last_dense": 0, "end": 0}, [0.5, 0.5, 0.5]),
        ({"start": 0, "last_dense": 2, "end": 2}, [0.5, 0, 0.5]),
        ({"start": 2, "last_dense": 2, "end": 2}, [0, 0, 0.5]),
        ({"start": 0, "last_dense": 0, "end": 2}, [0, 0, 0.5]),
    ],
)
def test_phases_of_no_length(bounds, expected):
    phases = AlternatingPhases(final=0.5, period=1, **bounds)
    assert [phases.value(t) for t in range(3)] == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"final": 1.0}, r"\[0, 1\)"),
        ({"final": -0.1}, r"\[0, 1\)"),
        ({"period": 0}, "at least one step"),
        ({"start": -1}, "must follow each other, not -1, 6, 8"),
        ({"start": 7}, "must follow each other, not 7, 6, 8"),
        ({"last_dense": 9}, "must follow each other, not 2, 9, 8"),
    ],
)
def test_impossible_phases_are_refused(change, message):
    with pytest.raises(UserError, match=message):
        AlternatingPhases(**{"final": 0.5, "start": 2, "period": 2, "last_dense": 6, "end": 8} | change)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Constant(1.0),
        lambda: Constant(-0.1),
        lambda: PolynomialRamp(final=1.0, start=0, end=1),
        lambda: PolynomialRamp(final=0.5, start=5, end=4),
        lambda: PolynomialRamp(final=0.5, start=-1, end=4),
        lambda: PolynomialRamp(final=0.5, start=0, end=4, power=0),
    ],
)
def test_impossible_schedules_are_refused(make):
    with pytest.raises(UserError):
        make()


# Settings -------------------------------------------------------------------------------------------------------------

Ramp, Alternating = SCHEDULES["ramp"], SCHEDULES["alternating"]
LENGTH = Length(steps_per_epoch=50, epochs=8)


def test_the_settings_become_steps_of_the_training():
    ramp = Ramp(start="1ep", end="50%", power=1).over(0.9, LENGTH)
    assert ramp == PolynomialRamp(final=0.9, start=50, end=200, power=1)
    assert SCHEDULES["constant"]().over(0.7, LENGTH) == Constant(0.7)
    phases = Alternating(start=10, period="1ep", last_dense="75%", end="350st").over(0.8, LENGTH)
    assert phases == AlternatingPhases(final=0.8, start=10, period=50, last_dense=300, end=350)


def test_the_defaults_fit_into_a_training_of_any_length():
    for steps in (1, 2, 7, 1000):
        assert Ramp().over(0.9, Length(steps)).value(steps - 1) == 0.9
    for steps in (20, 100, 1000):  # of phases at least one step long
        phases = Alternating().over(0.9, Length(steps))
        assert (phases.value(0), phases.value(steps - 1)) == (0, 0.9)
    published = Alternating().over(0.9, Length(100))
    assert published == AlternatingPhases(final=0.9, start=10, period=5, last_dense=75, end=85)


def test_what_ends_with_the_training_is_at_its_target_in_the_last_projection():
    assert Ramp(start=0, end="100%").over(0.9, LENGTH) == PolynomialRamp(final=0.9, start=0, end=399)
    assert Ramp(start="100%", end="100%").over(0.9, LENGTH) == PolynomialRamp(final=0.9, start=399, end=399)
    assert Alternating(end="100%").over(0.9, LENGTH).end == 399


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Ramp(start="5ep", end="4ep").over(0.9, LENGTH),
         r"schedule.end=4ep \(step 200\) comes before schedule.start=5ep \(step 250\)"),
        (lambda: Ramp(end="9ep").over(0.9, LENGTH),
         r"schedule.end=9ep \(step 450\) comes after the end of training \(step 400\): lower schedule.end or raise"),
        (lambda: Ramp(power=0), "schedule.power=0 must be positive"),
        (lambda: Ramp(start="soon"), "schedule.start=soon is no duration"),
        (lambda: Alternating(start="80%").over(0.9, LENGTH),
         r"schedule.last_dense=75% \(step 300\) comes before schedule.start=80% \(step 320\)"),
        (lambda: Alternating(period=0).over(0.9, LENGTH), "schedule.period=0 must be at least one optimizer step"),
        (lambda: SCHEDULES["constant"]().over(1.0, LENGTH), r"sparsity must lie in \[0, 1\), not 1"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused_by_their_name(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
