"""Durations as people write them, and the optimizer steps that they mean."""

import re
from dataclasses import dataclass

from st3.errors import UserError

_FORMS = "write 5ep (epochs), 200st (steps) or 50% (of training)"
_FORM = re.compile(r"(\d+(?:\.\d*)?|\.\d+)\s*(ep|st|%)?")
_INTERVAL = re.compile(r"(\d+(?:\.\d*)?)\s*(min|st)|0")


@dataclass(frozen=True)
class Length:
    """How long a training is: `epochs` of `steps_per_epoch` optimizer steps each."""

    steps_per_epoch: int
    epochs: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole training."""
        return self.steps_per_epoch * self.epochs


@dataclass(frozen=True)
class Duration:
    """A stretch of training: so many optimizer steps ("st"), epochs ("ep"), or percent of the training ("%")."""

    amount: float
    unit: str = "st"

    def __post_init__(self) -> None:
        if not (0 <= self.amount < float("inf") and self.unit in ("st", "ep", "%")):
            raise ValueError(f"{self.amount}{self.unit} is no duration: {_FORMS}")

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Of "5" or "5ep", "200st", "50%". Raises `ValueError` for another form."""
        match = _FORM.fullmatch(text.strip())
        if match is None:
            raise ValueError(f"{text} is no duration: {_FORMS}")
        return cls(float(match[1]), match[2] or "ep")

    def __str__(self) -> str:
        return f"{self.amount:.12g}{self.unit}" if self.amount else "0"

    def steps(self, length: Length | None) -> int:
        """Optimizer steps, rounded to the nearest.

        Raises `UserError` where it depends on the length of the training, and that is None.
        """
        if self.unit == "st" or not self.amount:
            return round(self.amount)
        if length is None:
            raise UserError(f"{self} depends on the length of the training: Sparsifier(…, length=…) says it in steps")
        return round(self.amount * (length.steps_per_epoch if self.unit == "ep" else length.steps / 100))


@dataclass(frozen=True)
class Interval:
    """Between checkpoints within an epoch; neither: there are none."""

    seconds: float | None = None
    steps: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Interval":
        """Of "10min", "500st" (optimizer steps), "0" (never). Raises `UserError` for another form."""
        match = _INTERVAL.fullmatch(text.strip())
        if match is None or (match[1] and not float(match[1])):
            raise UserError(f"checkpoint_every={text} is no interval: write 10min, 500st (steps), or 0 for never")
        if match[2] is None:
            return cls()
        return cls(seconds=60 * float(match[1])) if match[2] == "min" else cls(steps=max(1, round(float(match[1]))))
