"""Mean, spread and 95 % intervals of figures over seeds: pure functions."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Statistic:
    """A figure over the seeds, in the figure's own unit."""

    mean: float
    std: float | None
    """Sample standard deviation (n − 1); None for one seed."""
    n: int

    @property
    def half_width(self) -> float | None:
        """The 95 % interval of the mean is mean ± this (Student's t); None for one seed."""
        return None if self.std is None else t_quantile(self.n - 1) * self.std / math.sqrt(self.n)


def statistic(values: Sequence[float]) -> Statistic:
    """Of at least one value."""
    return Statistic(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def paired_differences(a: Mapping[int, float], b: Mapping[int, float]) -> list[float]:
    """a − b of each seed (the keys) that both have.

    What a seed does to both alike cancels: their interval is often narrower than those of a and b suggest.
    """
    return [value - b[seed] for seed, value in a.items() if seed in b]


@cache
def t_quantile(df: int) -> float:
    """The t within ± of which 95 % of Student's distribution with `df` ≥ 1 degrees of freedom lie: 12.706 for 1."""
    low, high = 0.0, math.pi / 2  # of the angle whose tangent is t/√df; bisected down to the last bit of a float
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _probability(middle, df) > CONFIDENCE else (middle, high)
    return math.sqrt(df) * math.tan(low)


def _probability(angle: float, df: int) -> float:
    """That |t| is below √df·tan(angle): the closed form for whole numbers of degrees of freedom, Abramowitz & Stegun,
    26.7.3 (odd) and 26.7.4 (even)."""
    odd = df % 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for power in range(odd, df - 1, 2):
        total += term
        term *= (power + 1) / (power + 2) * math.cos(angle) ** 2
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total
