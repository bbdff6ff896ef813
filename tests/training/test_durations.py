import pytest

from st3.errors import UserError
from st3.training.durations import to_steps


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("0", 0),
        ("5", 500),
        ("5ep", 500),
        ("5 ep", 500),
        (" 5ep ", 500),
        ("2.5", 250),
        (".5ep", 50),
        ("200st", 200),
        ("50%", 400),
        ("100%", 800),
        ("3.125%", 25),
        ("0.004", 0),
        ("0.006", 1),
    ],
)
def test_epochs_steps_and_percent_of_eight_epochs_of_hundred_steps(duration, steps):
    assert to_steps(duration, "x", steps_per_epoch=100, epochs=8) == steps


def test_fractions_of_a_step_go_to_the_nearest():
    assert to_steps("33%", "x", steps_per_epoch=7, epochs=1) == 2  # 2.31
    assert to_steps("38%", "x", steps_per_epoch=7, epochs=1) == 3  # 2.66
    assert to_steps("0.9st", "x", steps_per_epoch=7, epochs=1) == 1


@pytest.mark.parametrize("duration", ["", "ep", "-5ep", "5epochs", "1e3st", "5%%", "five", "5 6", "inf", "nan", "%"])
def test_another_form_is_refused_with_the_setting_and_the_forms(duration):
    with pytest.raises(UserError) as caught:
        to_steps(duration, "schedule.end", steps_per_epoch=100, epochs=8)
    message = str(caught.value)
    assert f"schedule.end={duration}" in message
    assert all(form in message for form in ("5ep", "200st", "50%"))
