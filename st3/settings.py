"""What the settings of a method, a schedule and an optimizer have in common.

Each variant is one frozen dataclass beside its code. Its fields are what may be typed as `group.field=value`, their
defaults are the published values, the docstrings below them are the help.
"""

from dataclasses import dataclass, fields
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
        self.validate()

    def validate(self) -> None:
        """Raises `UserError` for values that cannot be."""

    def check(self, holds: bool, key: str, otherwise: str) -> None:
        """Raises a `UserError` that says GROUP.KEY=VALUE and what is `otherwise` the matter."""
        if not holds:
            value = getattr(self, key)
            shown = f"{value:g}" if isinstance(value, float) else value
            raise UserError(f"{self.group}.{key}={shown} {otherwise}")

    def check_fraction(self, key: str) -> None:
        """Raises `UserError` unless the value lies in [0, 1]."""
        self.check(0 <= getattr(self, key) <= 1, key, "lies outside [0, 1]")

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
