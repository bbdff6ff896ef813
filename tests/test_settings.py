"""What a variant's dataclass does with the values that it is given."""

import math
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar, Literal

import pytest

from st3 import UserError
from st3.durations import Duration, Length
from st3.settings import Settings, converted, hints
from st3.sparsify.methods import GMP


@dataclass(frozen=True, kw_only=True)
class Oven(Settings):
    """One field of each kind."""

    group: ClassVar[str] = "oven"
    name: ClassVar[str] = "gas"

    bake: Duration = Duration(50, "%")
    turns: tuple[Duration, ...] = (Duration(1, "ep"), Duration(2, "ep"))
    trays: tuple[int, ...] = (1, 2)
    heat: Literal["above", "below"] = "above"
    degrees: float = 180.0
    fan: float | None = None

    def validate(self):
        self.check(self.degrees < 300, "degrees", "burns: 200 is enough")


LENGTH = Length(steps_per_epoch=10, epochs=6)


@pytest.mark.parametrize(("given", "steps"), [("10%", 6), ("2ep", 20), ("2", 20), ("7st", 7), (7, 7), (0, 0)])
def test_a_duration_is_text_or_a_number_of_steps(given, steps):
    assert Oven(bake=given).steps("bake", LENGTH) == steps
    assert Oven(bake=given) == Oven(bake=Oven(bake=given).bake)
    turns = Oven(turns=[given, "1ep"]).turns
    assert [turn.steps(LENGTH) for turn in turns] == [steps, 10]


def test_lists_become_tuples_so_that_settings_can_be_compared_and_hashed():
    oven = Oven(trays=[3, 4], turns=[])
    assert oven.trays == (3, 4)
    assert hash(oven) == hash(Oven(trays=(3, 4), turns=()))


def test_settings_stay_as_they_are():
    with pytest.raises(FrozenInstanceError):
        Oven().heat = "below"


def test_what_is_repeated_takes_at_least_a_step_however_short_the_training():
    assert Oven(bake="1%").interval("bake", LENGTH) == 1
    assert Oven(bake="25%").interval("bake", LENGTH) == 15
    assert Oven(bake=3).interval("bake", None) == 3


def test_hints_are_the_fields_and_nothing_else():
    assert list(hints(Oven)) == ["bake", "turns", "trays", "heat", "degrees", "fan"]
    assert hints(Oven)["bake"] is Duration


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Oven(bake="long"), "oven.bake=long is no duration: write 5ep (epochs), 200st (steps) or 50% (of"),
        (lambda: Oven(turns=["1ep", "-2ep"]), "oven.turns=-2ep is no duration"),
        (lambda: Oven(heat="around"), "oven.heat=around is not known: choose above or below"),
        (lambda: Oven(degrees=300.5), "oven.degrees=300.5 burns: 200 is enough"),
        (lambda: Oven(bake="0").interval("bake", LENGTH), "oven.bake=0 must be at least one optimizer step"),
        (lambda: Oven(bake="5%").steps("bake", None), "oven.bake=5% depends on the length of the training"),
        (lambda: Oven(bake="5%").interval("bake", None), "oven.bake=5% depends on the length of the training"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(make, message):
    with pytest.raises(UserError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("check", "fine", "wrong", "message"),
    [
        ("check_fraction", (0.0, 0.5, 1.0), (-0.1, 1.1), r"lies outside \[0, 1\]"),
        ("check_below_one", (0.0, 0.999), (-0.1, 1.0), r"lies outside \[0, 1\)"),
        ("check_not_negative", (0.0, 7.0), (-1e-9,), "must not be negative"),
        ("check_positive", (1e-9, 7.0), (0.0, -1.0), "must be positive"),
    ],
)
def test_bounds_of_numbers(check, fine, wrong, message):
    for value in fine:
        getattr(Oven(fan=value), check)("fan")
    for value in wrong:
        with pytest.raises(UserError, match=f"oven.fan={value:g} {message}"):
            getattr(Oven(fan=value), check)("fan")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_is_finite(value):
    with pytest.raises(UserError, match=rf"^oven\.fan={value:g} must be a finite number$"):
        Oven(fan=value)


@pytest.mark.parametrize(
    ("value", "kind", "becomes"),
    [
        (3, float, 3.0), ("1e-3", float, 1e-3), (2.0, int, 2), ("7", int, 7), (True, bool, True), (0, bool, False),
        ("on", bool, True), (7, str, "7"), ("", str, ""), (None, float | None, None), ([1, "a"], list[str], ["1", "a"]),
        ((0.1, 2), tuple[float, ...], [0.1, 2.0]), (5, Duration, "5"), (0.5, Duration, "0.5"), (3, int | float, 3),
        (0.1, int | float, 0.1), (-(2**62), int, -(2**62)),
    ],
)  # fmt: skip
def test_a_value_takes_the_type_of_its_setting(value, kind, becomes):
    found = converted("key", value, kind)
    assert (found, type(found)) == (becomes, type(becomes))


@pytest.mark.parametrize(
    ("value", "kind", "says"),
    [
        (math.nan, float, "key=nan must be a finite number"),
        (math.inf, float | None, "key=inf must be a finite number"),
        (1e300, float, "key=1e+300 must be at most 3.4e+38"), (10**400, float, "at most 3.4e+38"),
        ("abc", float, "key=abc must be a number"), (True, float, "key=true must be a number"),
        ({"a": 1}, float, "must be a number"), (2.5, int, "key=2.5 must be a whole number"),
        (math.inf, int, "must be a whole number"), (10**19, int, "must be at most 9223372036854775807"),
        (None, int, "key=null must be given a value"), (2, bool, "key=2 must be true or false"),
        (1.5, str, "key=1.5 must be text: write \"key='…'\""), (True, str, "must be text"), ([1], str, "must be text"),
        (3, list[float], "key=3 must be a list: key=[…]"), ([[1]], list[float], "key=[1] must be a number"),
        ([math.inf], list[float], "must be a finite number"), ("a\nb", float, "key=a\\nb must be a number"),
        ("x" * 1000, float, f"key={'x' * 57}… must be a number"), ([1], Duration, "must be a single value"),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_in_one_line_that_names_the_setting(value, kind, says):
    with pytest.raises(UserError) as caught:
        converted("key", value, kind)
    assert says in str(caught.value)
    assert str(caught.value).startswith("key=")


@pytest.mark.parametrize("value", [2.5, None, -5, "soon"])
def test_what_is_no_duration_is_a_user_error_that_names_the_setting(value):
    with pytest.raises(UserError, match=r"method\.every=.*is no duration"):
        GMP(every=value)
