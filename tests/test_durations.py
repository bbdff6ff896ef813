"""Durations as text, as steps, and the other way round."""

import pytest

from st3 import UserError
from st3.durations import Duration, Length

EIGHT_EPOCHS = Length(steps_per_epoch=100, epochs=8)


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("0", 0),
        ("5", 500),
        ("5ep", 500),
        ("5 ep", 500),
        (" 5ep ", 500),
        ("2.5", 250),
        ("2.", 200),
        (".5ep", 50),
        ("200st", 200),
        ("50%", 400),
        ("100%", 800),
        ("3.125%", 25),
        ("0.004", 0),
        ("0.006", 1),
    ],
)
def test_epochs_steps_and_percent_of_eight_epochs_of_hundred_steps(text, steps):
    assert Duration.parse(text).steps(EIGHT_EPOCHS) == steps
    assert Duration.parse(str(Duration.parse(text))).steps(EIGHT_EPOCHS) == steps


def test_fractions_of_a_step_go_to_the_nearest():
    seven = Length(7)
    assert Duration.parse("33%").steps(seven) == 2  # 2.31
    assert Duration.parse("38%").steps(seven) == 3  # 2.66
    assert Duration.parse("0.9st").steps(seven) == 1


def test_a_length_is_epochs_of_steps():
    assert (Length(40).steps, Length(40, epochs=3).steps) == (40, 120)
    for length in (Length(120), Length(40, epochs=3)):
        assert Duration(50, "%").steps(length) == 60
    assert Duration(2, "ep").steps(Length(40, epochs=3)) == 80


def test_it_is_written_as_it_is_typed():
    for text in ("5ep", "2.5ep", "200st", "50%", "1.6%", "0.125ep", "0"):
        assert str(Duration.parse(text)) == text
    assert str(Duration.parse("5")) == "5ep"
    assert str(Duration(7)) == "7st"
    assert Duration.parse("33.3333333%") == Duration.parse(str(Duration.parse("33.3333333%")))


@pytest.mark.parametrize("text", ["", "ep", "-5ep", "5epochs", "1e3st", "5%%", "five", "5 6", "inf", "nan", "%"])
def test_another_form_is_refused_with_the_forms_that_there_are(text):
    with pytest.raises(ValueError, match="is no duration") as caught:
        Duration.parse(text)
    assert str(caught.value).startswith(text)
    assert all(form in str(caught.value) for form in ("5ep", "200st", "50%"))


def test_steps_need_no_length_and_others_say_that_they_do():
    assert Duration(30).steps(None) == 30
    assert Duration(0, "%").steps(None) == 0
    for text in ("5%", "5ep"):
        with pytest.raises(UserError, match=f"^{text} depends on the length of the training"):
            Duration.parse(text).steps(None)


@pytest.mark.parametrize(("amount", "unit"), [(5, "epochs"), (-1, "st"), (float("inf"), "%"), (float("nan"), "ep")])
def test_an_amount_or_a_unit_that_cannot_be_is_refused(amount, unit):
    with pytest.raises(ValueError, match="is no duration"):
        Duration(amount, unit)
