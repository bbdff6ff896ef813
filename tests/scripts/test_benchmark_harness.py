import math
from argparse import Namespace

import pytest
from benchmarks import harness
from benchmarks.harness import Contender, Section, contest, digits, take_turns

from st3 import UserError
from st3.measure.timing import spread
from st3.training.machine import Machine


class Counter(Contender):
    """Notes in `log` what it is called for."""

    def __init__(self, name: str, log: list[str], failing: str = "", interval: int = 0):
        super().__init__(name, "here", Machine("cpu"))
        self.log, self.failing, self.interval = log, failing, interval

    def _note(self, what: str) -> None:
        self.log.append(f"{self.name} {what}")
        if what == self.failing:
            raise UserError(f"no {what}\nsecond line")

    def build(self) -> None:
        self._note("build")

    def warm_up(self) -> None:
        self._note("warm-up")

    def work(self) -> None:
        self._note("work")

    def update(self) -> None:
        self._note("update")

    def check(self) -> dict:
        self._note("check")
        return {"zeros": 1, "weights": 10}


def wait() -> None: ...


def test_all_are_built_before_any_warms_up_and_those_that_fail_drop_out():
    log: list[str] = []
    contenders = [
        Counter("dense", log), Counter("a", log, "build"), Counter("b", log, "warm-up"), Counter("c", log, "check"),
        Counter("d", log, interval=4),
    ]  # fmt: skip
    contest(contenders, "dense", Namespace(rounds=2, until=math.inf), wait)
    assert log == [
        "dense build", "a build", "b build", "c build", "d build",
        "dense warm-up", "b warm-up", "c warm-up", "d warm-up",
        "dense work", "c work", "d work", "d update",
        "c work", "d work", "d update", "dense work",
        "dense check", "c check", "d check",
    ]  # fmt: skip
    dense, a, b, c, d = (each.result for each in contenders)
    assert [each.get("reason") for each in (dense, a, b, c, d)] == [None, "no build", "no warm-up", "no check", None]
    assert [each.get("wrong") for each in (dense, a, b, c, d)] == [False, None, None, True, False]
    assert "seconds" not in c
    assert dense["to_dense"]["rounds"] == [1, 1]
    ordinary, update, whole = (d[f"{key}seconds"]["rounds"] for key in ("ordinary_", "update_", ""))
    assert whole == pytest.approx([3 / 4 * o + u / 4 for o, u in zip(ordinary, update, strict=True)])
    assert d["to_dense"]["rounds"] == [w / o for w, o in zip(whole, dense["seconds"]["rounds"], strict=True)]

    section = Section("Title", Namespace(), ["a note"], contenders, {"name": lambda result: result["contender"]})
    assert section.markdown().splitlines() == [
        "### Title", "", "| name |", "| --- |", "| dense |", "| d |", "",
        "- here: not available for a: no build",
        "- here: not available for b: no warm-up",
        "- here: not available for c: no check",
        "- a note",
    ]  # fmt: skip


def test_no_contender_is_left():
    contender = Counter("dense", [], "build")
    contest([contender], "dense", Namespace(rounds=2, until=math.inf), wait)
    assert harness.rounds_done([contender], Namespace(rounds=2)) == "0 of 2"


@pytest.mark.parametrize(("until", "order"), [(math.inf, "aabbaaaab"), (-math.inf, "aab")])
def test_rounds_rotate_and_end_at_the_limit(until, order):
    called: list[str] = []
    jobs = [(lambda: called.append("a"), 2, []), (lambda: called.append("b"), 1, [])]
    take_turns(jobs, wait, Namespace(rounds=3, until=until))
    assert "".join(called) == order
    assert [len(seconds) for _, _, seconds in jobs] == [len(order) // 3] * 2


def test_numbers():
    found = spread([4.0, 1.0, 2.0, 3.0, 5.0])
    assert found == {"n": 5, "median": 3, "q1": 2, "q3": 4, "min": 1, "max": 5, "rounds": [4, 1, 2, 3, 5]}
    assert [digits(value) for value in (0, 0.012345, 1.2345, 12.345, 12345)] == ["0", "0.0123", "1.23", "12.3", "12345"]
