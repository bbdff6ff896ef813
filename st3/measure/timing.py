"""How times are taken: in turns, so that whatever else the machine does hits all alike, and with their spread."""

import time
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np

Job = TypeVar("Job")


def rotation(jobs: Sequence[Job], rounds: int, until: float = float("inf")) -> Iterator[Job]:
    """Every one of `jobs` in each round; the order rotates by round.

    No round but the first begins after `until`, as `time.perf_counter` counts.
    """
    for number in range(rounds):
        if number and time.perf_counter() > until:
            break
        first = number % max(1, len(jobs))
        yield from (*jobs[first:], *jobs[:first])


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Median, quartiles and extremes of the rounds, and the rounds themselves."""
    low, first, middle, third, high = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
    found = {"n": len(values), "median": middle, "q1": first, "q3": third, "min": low, "max": high}
    return found | {"rounds": list(values)}
