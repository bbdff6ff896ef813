"""Durations as people write them, and the optimizer steps that they mean."""

import re

from st3.errors import UserError

_FORM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ep|st|%)?")


def to_steps(duration: str, setting: str, *, steps_per_epoch: int, epochs: int) -> int:
    """Optimizer steps of "5" or "5ep" (epochs), "200st" (steps) or "50%" (of training), rounded to the nearest.

    Raises `UserError`, naming `setting`, when `duration` has none of these forms.
    """
    match = _FORM.fullmatch(duration.strip())
    if match is None:
        raise UserError(f"{setting}={duration} is no duration: write 5ep (epochs), 200st (steps) or 50% (of training)")
    number, unit = float(match[1]), match[2] or "ep"
    scale = {"ep": steps_per_epoch, "st": 1, "%": steps_per_epoch * epochs / 100}[unit]
    return round(number * scale)
