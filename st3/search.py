"""Search for the setting with which training comes out at a sparsity: `python -m st3.search SETTING=LOW..HIGH …`.

With most methods the sparsity is what was asked for. With STR it is an outcome of the start value and the decay of its
thresholds. Here one of these gets a range, and is tried until the sparsity lies within the tolerance of `sparsity=`:

    python -m st3.search method.threshold_init=-8..-2 method=str schedule=constant sparsity=0.9

Each trial is a whole run of st3-train in a process of its own and a run directory of its own, OUT/threshold_init--4-s0.
All that the search remembers is in these directories, and the next value depends on the finished ones alone. So the
same command continues a search, another range takes in the trials that lie inside it, and nothing is trained twice.
"""

import argparse
import math
import re
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from st3.build import make_model, make_plan, make_sparsifier, read_facts
from st3.config import Config
from st3.errors import UserError
from st3.measure import layer_macs
from st3.report.table import Row
from st3.reproduce import Task, plan, positive, positive_int, run_all, state_of, stoppable
from st3.training.run_directory import RunDirectory

# Which value to try --------------------------------------------------------------------------------------------------

_NOISE = 0.2
"""Log-odds: two outcomes that differ by less than this do not say which way the sparsity goes."""


def miss(sparsity: float, target: float, weights: int) -> float:
    """How far off the target an outcome is, in log-odds: 0 is met, above 0 is too sparse.

    Log-odds, because sparsity levels off towards 0 and 1; these two, whose log-odds are infinite, count as half of one
    of the `weights` away from them.
    """
    edge = 0.5 / weights
    return _log_odds(min(max(sparsity, edge), 1 - edge)) - _log_odds(target)


def _log_odds(fraction: float) -> float:
    return math.log(fraction / (1 - fraction))


def next_value(misses: Mapping[float, float], low: float, high: float) -> float | None:
    """The value between `low` and `high` to try next, given how far off those tried came out; None: there is none.

    Both ends have the same sign, and values are compared by the logarithm of their magnitude. The outcome is taken to
    rise or to fall with the value; which of the two is learned from the trials. Regula falsi between the two trials
    around the target; where that leaves one of them standing, the secant through its neighbour, at most to the middle.
    While all trials lie on one side of the target, the secant beyond the nearest, at most to the end. The value is a
    decimal of three or four digits. None where an end lies on that side too, or no such decimal is left in between.
    """
    near, far = sorted((low, high), key=abs)
    start, end = math.log(abs(near)), math.log(abs(far))
    points = sorted((math.log(abs(value)), missed) for value, missed in misses.items())
    crossings = [i for i in range(len(points) - 1) if points[i][1] * points[i + 1][1] < 0]
    if not points:
        x, left, right = (start + end) / 2, start, end
    elif crossings:
        # Training is noisy: of several crossings, the one with both sides nearest.
        i = min(crossings, key=lambda i: max(abs(points[i][1]), abs(points[i + 1][1])))
        x, left, right = _between(points, i), points[i][0], points[i + 1][0]
    else:
        x = _beyond(points, start, end)
        if x is None or x <= start or x >= end:
            return None if x is None else near if x <= start else far
        left = max([start, *(p for p, _ in points if p < x)])
        right = min([end, *(p for p, _ in points if p > x)])
    if value := _short(x, left, right):
        return math.copysign(value, low)
    return None if crossings else next((each for each in (far, near) if each not in misses), None)


def _between(points: Sequence[tuple[float, float]], i: int) -> float:
    """Where the miss is expected to be 0, between points i and i + 1, whose misses differ in sign."""
    (left, miss_left), (right, miss_right) = points[i], points[i + 1]
    width = right - left
    part = miss_left / (miss_left - miss_right)
    # The nearer side, and the point behind it: where the curve bends, regula falsi adds point after point on this side,
    # and hardly narrows the bracket.
    from_left = abs(miss_left) < abs(miss_right)
    (x, missed), behind = points[i if from_left else i + 1], i - 1 if from_left else i + 2
    if 0 <= behind < len(points) and abs(points[behind][0] - x) < width / 2:
        step = _secant(points[behind], (x, missed))
        ahead = step / width if from_left else -step / width
        ahead = ahead if 0 < ahead < 0.5 else 0.5
        part = ahead if from_left else 1 - ahead
    return left + part * width


def _beyond(points: Sequence[tuple[float, float]], start: float, end: float) -> float | None:
    """Where to look when all misses have one sign; None when the range offers nothing better."""
    first, last = points[0], points[-1]
    if len(points) == 1:
        return (last[0] + end) / 2 if last[0] < end else (start + last[0]) / 2
    if abs(last[1] - first[1]) < _NOISE:
        return end if last[0] < end else start if first[0] > start else None
    if abs(last[1]) < abs(first[1]):
        nearest, second, limit = last, points[-2], end
    else:
        nearest, second, limit = first, points[1], start
    if nearest[0] == limit:
        return None
    step = _secant(second, nearest)
    return nearest[0] + step if 0 < step / (limit - nearest[0]) < 1 else limit


def _secant(behind: tuple[float, float], point: tuple[float, float]) -> float:
    """The step from `point` to where the line through both is 0."""
    rise = point[1] - behind[1]
    return -point[1] * (point[0] - behind[0]) / rise if rise else math.inf


def _short(x: float, left: float, right: float) -> float | None:
    """A decimal of three digits, or of four where need be, near e^x and strictly between e^left and e^right."""
    for guess in (x, (left + right) / 2):
        for digits in (3, 4):
            value = float(f"{math.exp(guess):.{digits}g}")
            if left < math.log(value) < right:
                return value
    return None


# The trials -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """A setting, and between which values it is searched."""

    setting: str
    low: float
    high: float

    @classmethod
    def parse(cls, overrides: Sequence[str]) -> "Range":
        """Of the one override that has one. Raises `UserError` when it is not exactly one, or has no logarithm."""
        found = []
        for override in overrides:
            setting, _, value = override.partition("=")
            try:
                low, high = (float(f"{float(end):g}") for end in value.split(".."))
            except ValueError:
                continue
            found.append(cls(setting, low, high))
        if len(found) != 1:
            what = ", ".join(each.setting for each in found) or "none"
            raise UserError(f"give one setting a range, as in method.threshold_init=-8..-2 (now it is {what})")
        (one,) = found
        if one.setting in ("sparsity", "seed"):
            raise UserError(f"{one}: {one.setting} takes one value, the range belongs to a setting of the method")
        if not (0 < one.low * one.high < math.inf and one.low < one.high):
            raise UserError(f"{one}: write LOW..HIGH, both positive or both negative")
        return one

    def __str__(self) -> str:
        return f"{self.setting}={self.low:g}..{self.high:g}"

    def widened(self, end: float) -> "Range":
        """Ten times as far at one end."""
        if end == self.low:
            return Range(self.setting, self.low * (10 if self.low < 0 else 0.1), self.high)
        return Range(self.setting, self.low, self.high * (10 if self.high > 0 else 0.1))


class _TrialRow(Row):
    """A row of no table: one value of the range."""

    @property
    def slug(self) -> str:
        setting, _, value = self.label.partition("=")
        return f"{setting.rpartition('.')[2]}-{value}"

    @property
    def name(self) -> str:
        return self.label


class Search:
    """The trials of one range, with all that is finished of them.

    `tolerance` is a fraction. `out` is their folder; None: one below outputs/search/ that is named by what is trained.

    Raises `UserError` for overrides that st3-train would not take, for a method that meets its sparsity by itself, and
    for an `out` that holds trials with other settings.
    """

    def __init__(self, overrides: Sequence[str], tolerance: float, out: Path | None):
        self.range, self.tolerance = Range.parse(overrides), tolerance
        self._overrides, self._seed = overrides, _seed(overrides)
        self._out = Path()  # not known before the first task is made, nor needed for it
        config = self.task(self.range.low).config
        self.task(self.range.high)  # for its mistakes
        _check_method(config)
        self.target = config.sparsity
        name = f"{config.model.name}-{config.dataset.name}-{config.method.name}-{self.target:g}"
        self._out = out or Path("outputs", "search", re.sub(r"[^\w.=-]+", "_", name))
        self.summaries: dict[float, dict] = {}
        """summary.json of the finished trials, by value."""
        self._read()

    def task(self, value: float) -> Task:
        """The run for a value. Raises `UserError` when st3-train would not take it."""
        chosen = f"{self.range.setting}={value:g}"
        theirs = [each for each in self._overrides if each.partition("=")[0] not in (self.range.setting, "seed")]
        row = _TrialRow(label=chosen, method=None, sparsity=0, overrides=(*theirs, chosen), published=None)
        return plan([row], [], [self._seed], self._out)[0]

    def next(self) -> float | None:
        """The value to try; None: there is none."""
        return next_value(self._misses(), self.range.low, self.range.high)

    def train(self, value: float) -> str | None:
        """Make a trial, or finish it. Returns what prevented it; raises `UserError` where no folder can be made."""
        task = self.task(value)
        try:
            self._out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--out {self._out} cannot be created ({error.strerror}): choose another") from error
        number = f"[{len(self.summaries) + 1}] "
        outcome = run_all([task], 1, lambda line: print(number + line.removeprefix("[1/1] "), flush=True))
        for _, error in outcome.broken:
            return f"{task.name} is broken; the same command tries it again (see {task.log}): {error}"
        for _, by in outcome.held:
            return f"{task.name} is left to {by}"
        self.summaries[value] = RunDirectory(task.run_dir).finished()
        return None

    @property
    def nearest(self) -> float | None:
        """The value whose sparsity is nearest to the target."""
        return self._nearest(self.summaries)

    @property
    def is_met(self) -> bool:
        """Whether the nearest is within the tolerance."""
        slack = 1e-9  # half a point exactly is within, whatever binary fractions make of it
        return bool(self.summaries) and abs(self._off(self.nearest)) <= self.tolerance + slack

    def why_not(self) -> str:
        """Why there is no value to try."""
        misses, where = self._misses(), self.range
        least, most = (self.summaries[pick(misses, key=misses.get)]["sparsity"] for pick in (min, max))
        if least < self.target < most:
            below, above = (self._nearest([v for v in misses if side * misses[v] > 0]) for side in (-1, 1))
            return f"{where.setting} hits no closer: sparsity jumps over the target between {below:g} and {above:g}"
        end = self.nearest
        widened = where.widened(end if end in (where.low, where.high) else max(where.low, where.high, key=abs))
        return f"{where} does not reach it, only {least:.2%} to {most:.2%}: widen the range, {widened}"

    def table(self) -> str:
        """One line for each trial, by value."""
        lines = [f"{self.range.setting:>24}  sparsity   top-1 %      M MACs"]
        for value, summary in sorted(self.summaries.items()):
            figures = f"{summary['sparsity']:9.2%} {summary['top1']:9.2f} {summary['macs'] / 1e6:11,.2f}"
            lines.append(f"{value:>24g} {figures}{'  nearest' if value == self.nearest else ''}")
        return "\n".join(lines)

    def _read(self) -> None:
        name = self.range.setting.rpartition(".")[2]
        for path in self._out.glob(f"{name}-*-s{self._seed}"):
            try:
                value = float(path.name.removeprefix(f"{name}-").removesuffix(f"-s{self._seed}"))
            except ValueError:
                continue
            if self.range.low <= value <= self.range.high:
                done, error = state_of(self.task(value))
                if error:
                    raise UserError(f"choose another --out: {error}")
                if done:
                    self.summaries[value] = RunDirectory(path).finished()

    def _misses(self) -> dict[float, float]:
        return {v: miss(s["sparsity"], self.target, s["prunable"]) for v, s in self.summaries.items()}

    def _nearest(self, values: Iterable[float]) -> float | None:
        return min(values, key=lambda value: abs(self._off(value)), default=None)

    def _off(self, value: float) -> float:
        return self.summaries[value]["sparsity"] - self.target


def _seed(overrides: Sequence[str]) -> int:
    seeds = [override.partition("=")[2] for override in overrides if override.startswith("seed=")] or ["0"]
    if len(seeds) > 1 or not seeds[0].isdecimal():
        raise UserError(f"seed={','.join(seeds)}: a search has one seed")
    return int(seeds[0])


def _check_method(config: Config) -> None:
    """Raises `UserError` unless its sparsity is an outcome, and for what st3-train finds only when it starts."""
    facts, data = read_facts(config), config.dataset
    with torch.device("meta"):
        network = make_model(config, facts)
    macs = layer_macs(network, (data.channels, data.image_size, data.image_size))
    sparsifier = make_sparsifier(config, make_plan(config, facts), network, macs)
    if not sparsifier.method.start(list(sparsifier.raw_weights().values()), sparsifier.schedule).sparsity_is_outcome:
        raise UserError(f"method={config.method.name} meets its sparsity by itself: there is nothing to search")
    if config.sparsity == 0:
        raise UserError("sparsity=0 is the dense network: there is nothing to search")


# The command ----------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 outside the tolerance, 2 for a mistake in what was typed, 130 when interrupted."""
    options = _parser().parse_intermixed_args(arguments)
    try:
        with stoppable():
            return _search(options)
    except UserError as error:
        print(f"search: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command continues", flush=True)
        return 130


def _search(options: argparse.Namespace) -> int:
    for override in options.overrides:
        if instead := {"run_dir": "--out", "dry_run": "--dry-run"}.get(override.partition("=")[0]):
            raise UserError(f"{override}: write {instead}")
    search = Search(options.overrides, options.tolerance / 100, Path(options.out) if options.out else None)
    obstacle = None
    while not search.is_met and not obstacle:
        if (value := search.next()) is None:
            obstacle = search.why_not()
        elif len(search.summaries) >= options.trials:
            obstacle = f"{len(search.summaries)} trials are made: --trials {2 * options.trials} goes on"
        elif options.dry_run:
            print(f"# trial {len(search.summaries) + 1} of at most {options.trials}\n{search.task(value).command}")
            return 0
        else:
            obstacle = search.train(value)
    if search.summaries:
        best = search.task(search.nearest)
        off = 100 * (search.summaries[search.nearest]["sparsity"] - search.target)
        print(f"\n{search.table()}\n")
        print(
            f"{best.row.name} comes out {abs(off):.2f} points {'above' if off > 0 else 'below'} {search.target:.2%}: "
            f"{'within' if search.is_met else 'OUTSIDE'} the tolerance of {options.tolerance:g}"
        )
        again = shlex.join(["st3-train", *best.row.overrides, f"seed={best.seed}"])
        print(f"run      {best.run_dir}\nrepeat   {again}")
    if obstacle:
        print(obstacle)
    return 0 if search.is_met else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="search",
        description="Find the setting with which training comes out at sparsity=…; for methods that do not meet it "
        "by themselves. The same command continues a search.",
    )
    parser.add_argument(
        "overrides",
        nargs="+",
        metavar="OVERRIDE",
        help="as for st3-train, one of them with a range: method.threshold_init=-8..-2",
    )
    parser.add_argument("--trials", type=positive_int, default=8, metavar="N", help="trainings at most (default 8)")
    parser.add_argument(
        "--tolerance", type=positive, default=0.5, metavar="POINTS", help="percent of all weights (default 0.5)"
    )
    parser.add_argument("--out", metavar="DIR", help="where the trials are (default a folder in outputs/search)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of the next trial")
    return parser


if __name__ == "__main__":
    sys.exit(main())
