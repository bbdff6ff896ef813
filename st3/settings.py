"""What the settings of a method, a schedule and an optimizer have in common.

Each variant is one frozen dataclass beside its code. Its fields are what may be typed as `group.field=value`, their
defaults are the published values, the docstrings below them are the help.
"""

import math
import re
from dataclasses import dataclass, fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from st3.durations import Duration, Length
from st3.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of the variants. A `Duration` may also be given as text, or as a number of optimizer steps.

    Raises `UserError`, naming the setting, for what is no duration or not among the choices of a `Literal`.
    """

    group: ClassVar[str]
    """The group of settings that it belongs to, such as method or schedule."""
    name: ClassVar[str]
    """What is typed for it: `method.name=…`."""
    option: ClassVar[str] = ""
    """The file in configs/GROUP that has its defaults, where that is called otherwise."""

    def __post_init__(self) -> None:
        for key, kind in hints(type(self)).items():
            value = getattr(self, key)
            if kind is Duration:
                object.__setattr__(self, key, self._duration(key, value))
            elif kind == tuple[Duration, ...]:
                object.__setattr__(self, key, tuple(self._duration(key, each) for each in value))
            elif get_origin(kind) is tuple:
                object.__setattr__(self, key, tuple(value))
            elif get_origin(kind) is Literal:
                self.check(value in get_args(kind), key, f"is not known: choose {' or '.join(get_args(kind))}")
            elif isinstance(value, float):
                self.check(math.isfinite(value), key, "must be a finite number")
        self.validate()

    def validate(self) -> None:
        """Raises `UserError` for values that cannot be."""

    def check(self, holds: bool, key: str, otherwise: str) -> None:
        """Raises a `UserError` that says GROUP.KEY=VALUE and what is `otherwise` the matter."""
        if not holds:
            value = getattr(self, key)
            raise UserError(f"{self.group}.{key}={shown(value)} {otherwise}")

    def check_fraction(self, key: str) -> None:
        """Raises `UserError` unless the value lies in [0, 1]."""
        self.check(0 <= getattr(self, key) <= 1, key, "lies outside [0, 1]")

    def check_below_one(self, key: str) -> None:
        """Raises `UserError` unless the value lies in [0, 1)."""
        self.check(0 <= getattr(self, key) < 1, key, "lies outside [0, 1)")

    def check_not_negative(self, key: str) -> None:
        """Raises `UserError` for a value below zero, or none."""
        self.check(getattr(self, key) >= 0, key, "must not be negative")

    def check_positive(self, key: str) -> None:
        """Raises `UserError` unless the value is above zero."""
        self.check(getattr(self, key) > 0, key, "must be positive")

    def interval(self, key: str, length: Length | None) -> int:
        """Steps of a duration that is repeated: at least 1, however short the training. Raises `UserError` for 0."""
        self.check(getattr(self, key).amount > 0, key, "must be at least one optimizer step")
        return max(1, self.steps(key, length))

    def moment(self, key: str, length: Length | None) -> int:
        """The step of a duration from the start. Raises `UserError` where it comes after the end of training."""
        step = self.steps(key, length)
        if length and step > length.steps:
            raise UserError(
                f"{self.group}.{key}={getattr(self, key)} (step {step}) comes after the end of training (step "
                f"{length.steps}): lower {self.group}.{key} or raise epochs"
            )
        return step

    def steps(self, key: str, length: Length | None) -> int:
        """Optimizer steps of a duration. Raises `UserError` where it needs a length, and there is none."""
        try:
            return getattr(self, key).steps(length)
        except UserError as error:
            raise UserError(f"{self.group}.{key}={error}") from None

    def _duration(self, key: str, value: Any) -> Duration:
        if isinstance(value, Duration):
            return value
        try:
            if isinstance(value, int):
                return Duration(value)
            if not isinstance(value, str):
                raise ValueError(f"{value} is no duration: give optimizer steps, or text as in 75%")
            return Duration.parse(value)
        except ValueError as error:
            raise UserError(f"{self.group}.{key}={error}") from None


def hints(cls: type) -> dict[str, Any]:
    """The fields of a dataclass of settings and their types."""
    resolved = get_type_hints(cls)
    return {field.name: resolved[field.name] for field in fields(cls)}


# From what is typed or read to the values of a dataclass --------------------------------------------------------------

LARGEST = 3.4e38
"""Of a number: what float32 holds, in which a network is computed."""
LARGEST_WHOLE = 2**63 - 1
"""Of a whole number: what PyTorch counts with."""
_TRUTH = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def converted(name: str, value: Any, kind: Any) -> Any:
    """The value of the setting `name` as a field of type `kind` takes it. A number may also be text, as it is in an
    environment variable. Durations and choices stay text, lists become lists.

    Raises `UserError`, naming the setting, for a value of another type, and for numbers that are not finite.
    """

    def complain(must: str) -> UserError:
        return UserError(f"{name}={shown(value)} must be {must}")

    kinds = get_args(kind) if isinstance(kind, UnionType) else (kind,)
    if value is None:
        if NoneType in kinds:
            return None
        raise complain("given a value")
    if get_origin(kind) in (list, tuple):
        if not isinstance(value, list | tuple):
            raise complain(f"a list: {name}=[…]")
        return [converted(name, each, get_args(kind)[0]) for each in value]
    if bool in kinds:
        truth = _TRUTH.get(str(value).lower()) if isinstance(value, bool | int | str) else None
        if truth is None:
            raise complain("true or false")
        return truth
    if float in kinds:
        return _number(value, complain, whole_stays=int in kinds)
    if int in kinds:
        return _whole(value, complain)
    if not isinstance(value, str | int | float):
        raise complain("a single value" if kind is Duration or get_origin(kind) is Literal else "text")
    if str in kinds and isinstance(value, bool | float):
        raise complain(f"text: write \"{name}='…'\" where it looks like something else")
    return str(value)


def _number(value: Any, complain: Any, *, whole_stays: bool) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise complain("a number") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise complain("a number")
    if not abs(value) <= LARGEST:  # nan, too
        raise complain("a finite number" if value != value or abs(value) == math.inf else f"at most {LARGEST:g}")
    return value if whole_stays else float(value)


def _whole(value: Any, complain: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d{1,30}", value):
        value = int(value)
    if type(value) not in (int, float) or not abs(value) < math.inf or value != int(value):
        raise complain("a whole number")
    if abs(value) > LARGEST_WHOLE:
        raise complain(f"at most {LARGEST_WHOLE}")
    return int(value)


def printable(text: str) -> str:
    """A path or a name as it can stand in a line of text, whole."""
    return text if text.isprintable() else repr(text)


def shown(value: Any) -> str:
    """A value in a message: as it is typed, in one line, and not all of a long one."""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, float):
        text = f"{value:g}"
    elif isinstance(value, int):
        text = str(value) if abs(value) < 10**40 else "a number of very many digits"
    else:
        text = str(value)
    text = text if text.isprintable() else repr(text)[1:-1]
    return text if len(text) <= 60 else f"{text[:57]}…"
