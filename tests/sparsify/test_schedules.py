import pytest

from st3 import UserError
from st3.sparsify import Constant, PolynomialRamp


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
