"""Contenders take turns, and a table says what came of it."""

import math
import time
import warnings
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from st3.errors import UserError
from st3.measure.timing import rotation, spread
from st3.training.machine import Machine

SPARSITY = 0.9

Result = dict[str, Any]
Columns = dict[str, Callable[[Result], str]]
"""Heading to what a result says below it."""


class Contender:
    """One way to do what a table is about, once with each call of `work`."""

    calls = 1
    """In a row, in each round."""
    interval = 0
    """One call in so many would be an `update`, which is timed apart; 0: none."""
    warm_up: Callable[[], None]
    """Calls until calls take their usual time."""
    work: Callable[[], None]
    update: Callable[[], None]
    check: Callable[[], Result]
    """Returns what has been computed, as numbers. Raises `UserError` where that is wrong."""

    def __init__(self, name: str, group: str, machine: Machine, **known: Any):
        self.name, self.group, self.machine = name, group, machine
        self.result: Result = {"contender": name, **known}
        """What is known of it. Where it could not be timed, "reason" says why."""
        self.seconds, self.update_seconds = list[float](), list[float]()
        """Of a call, in each round."""

    def build(self) -> None:
        """Make what it works with."""

    def attempt(self, act: Callable[..., None], *arguments: Any) -> None:
        """`act`, unless something has gone wrong before. What goes wrong in it becomes the reason.

        So does a fallback to a slower way, which must not be timed under the name of the fast one.
        """
        if "reason" in self.result:
            return
        try:
            with warnings.catch_warnings():
                for message in ("st3's fused projection", "the step cannot be captured"):
                    warnings.filterwarnings("error", message=message)
                act(*arguments)
        except (UserError, UserWarning, RuntimeError) as error:  # the last is what compilers and CUDA raise
            self.result["reason"] = str(error).partition("\n")[0]

    def conclude(self, reference: "Contender | None") -> None:
        """Check what it has computed, and say what that took, also relative to the `reference`."""
        self.result["wrong"] = True
        self.result |= {**self.check(), "wrong": False}
        spent = self.seconds
        if self.interval:  # an update counts as often as it occurs
            spent = [a + (b - a) / self.interval for a, b in zip(spent, self.update_seconds, strict=True)]
            self.result |= {"ordinary_seconds": spread(self.seconds), "update_seconds": spread(self.update_seconds)}
            self.result["update_interval"] = self.interval
        self.result["seconds"] = spread(spent)
        if reference:
            self.result[f"to_{reference.name}"] = spread([a / b for a, b in zip(spent, reference.seconds, strict=True)])


def contest(contenders: Sequence[Contender], reference: str, args: Namespace, wait: Callable[[], None]) -> None:
    """Time all contenders, and compare each with the `reference` of its group."""
    for each in contenders:
        each.attempt(each.build)
    for each in contenders:  # when all are built, as building one drops the compiled code of those before
        each.attempt(each.warm_up)
    ready = [each for each in contenders if "reason" not in each.result]
    jobs = [(each.work, each.calls, each.seconds) for each in ready]
    take_turns(jobs + [(each.update, 1, each.update_seconds) for each in ready if each.interval], wait, args)
    references = {each.group: each for each in ready if each.name == reference}
    for each in ready:
        each.attempt(each.conclude, references.get(each.group))


def take_turns(jobs: Sequence[tuple[Callable[[], None], int, list[float]]], wait: Callable, args: Namespace) -> None:
    """In each round call every one of the `jobs` so many times in a row, and note the seconds per call.

    See `rotation`.
    """
    for call, times, seconds in rotation(jobs, args.rounds, args.until):
        seconds.append(timed(call, times, wait))


def timed(call: Callable[[], None], times: int, wait: Callable[[], None]) -> float:
    """Seconds per call of so many in a row."""
    wait()
    begin = time.perf_counter()
    for _ in range(times):
        call()
    wait()
    return (time.perf_counter() - begin) / times


@dataclass
class Section:
    """One table with everything that it was made from."""

    title: str
    settings: Namespace
    notes: list[str]
    contenders: Sequence[Contender]
    columns: Columns

    def markdown(self) -> str:
        timed = [each.result for each in self.contenders if "seconds" in each.result]
        rows = [[*self.columns], ["---"] * len(self.columns)]
        rows += [[cell(result) for cell in self.columns.values()] for result in timed]
        reasons: dict[tuple[str, str], list[str]] = {}
        for each in self.contenders:
            if reason := each.result.get("reason"):
                reasons.setdefault((each.group, reason), []).append(each.name)
        notes = [f"{group}: not available for {', '.join(names)}: {why}" for (group, why), names in reasons.items()]
        lines = [*(f"| {' | '.join(cells)} |" for cells in rows), "", *(f"- {note}" for note in notes + self.notes)]
        return "\n".join([f"### {self.title}", "", *lines])

    def plain(self) -> dict[str, Any]:
        settings = {name: value for name, value in vars(self.settings).items() if name not in ("until", "out")}
        results = [each.result for each in self.contenders]
        return {"title": self.title, "settings": settings, "notes": self.notes, "results": results}


def time_columns(unit: str, factor: float, reference: str) -> Columns:
    """The seconds, times `factor`, and the ratio to the `reference`."""

    def show(*names: str) -> Callable[[Result], str]:
        return lambda result: "–".join(digits(factor * result["seconds"][name]) for name in names)

    def ratio(result: Result) -> str:
        if (found := result.get(f"to_{reference}")) is None:
            return "–"
        parts = (f"{v:.3f}" if v < 10 else f"{v:.1f}" for v in (found["median"], found["q1"], found["q3"]))
        return "{} ({}–{})".format(*parts)

    times = {f"{unit}, median": show("median"), "middle half": show("q1", "q3"), "min–max": show("min", "max")}
    return times | {f"× {reference} (middle half)": ratio}


def digits(value: float) -> str:
    """Three significant ones, or all before the point."""
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


def zeros_of(result: Result) -> str:
    return f"{result['zeros']:,} of {result['weights']:,}"


def rounds_done(contenders: Sequence[Contender], args: Namespace) -> str:
    """What the notes call n: "15", or where --time-limit ended them "3 of 15"."""
    fewest = min((len(each.seconds) for each in contenders if each.seconds), default=0)
    return f"{fewest} of {args.rounds}" if fewest < args.rounds else f"{fewest}"
