"""Find the setting with which a method that only ends up at a sparsity (STR) ends up at the wanted one.

One setting is given a range, LOW..HIGH. Both ends are trained, then values between them, until the sparsity lies within
the tolerance of sparsity=…. Each trial is a whole run of st3-train in a run directory of its own. The same command
continues a search: it asks for the same values again, and finished trials are read instead of trained.

examples:
  st3 search method.threshold_init=-10..-1 method=str sparsity=0.9 epochs=2 --trials 12 --tolerance 0.2
"""

import argparse
import math
import re
import shlex
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path

from st3.errors import UserError
from st3.options import positive, positive_int
from st3.tables.reproduce import make_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What may be typed after `st3 search`."""
    parser.add_argument("overrides", nargs="+", metavar="OVERRIDE", help="as for st3-train; one is SETTING=LOW..HIGH")
    parser.add_argument("--trials", type=positive_int, default=8, metavar="N", help="trainings at most (default 8)")
    parser.add_argument("--tolerance", type=positive, default=0.5, metavar="POINTS", help="in percent (default 0.5)")
    parser.add_argument("--out", metavar="DIR", help="where the trials are (default a folder in outputs/search)")
    parser.add_argument("--dry-run", action="store_true", help="print the command of the next trial")


def run(options: argparse.Namespace) -> int:
    """The exit code: 0, or 1 outside the tolerance. Raises `UserError` and KeyboardInterrupt."""
    from st3.compose import compose_config
    from st3.sketch import sketch
    from st3.tables.plan import Task, sketch_or_error
    from st3.tables.workers import finished, run_all, stoppable
    from st3.training.summary import Summary

    setting, low, high = parse_range(options.overrides)

    def told(value: float) -> list[str]:
        return [f"{setting}={value:g}" if each.startswith(f"{setting}=") else each for each in options.overrides]

    config, _ = map(compose_config, (told(low), told(high)))  # the other end for its mistakes
    target = config.sparsity
    if not sketch(config).sparsifier.sparsity_is_outcome or target == 0:
        raise UserError(f"method={config.method.name} meets sparsity={target:g} by itself: there is nothing to search")
    name = f"{config.model.name}-{config.dataset.name}-{config.method.name}-{target:g}"
    out = Path(options.out or Path("outputs", "search", re.sub(r"[^\w.=-]+", "_", name)))
    tried: dict[float, tuple[Task, Summary]] = {}
    proposals, is_met, obstacle = values(low, high), False, ""
    value = next(proposals)
    while not is_met and not obstacle:
        run_dir = out / f"{setting.rpartition('.')[2]}-{value:g}-s{config.seed}"
        trial = Task.make(f"{setting}={value:g}", told(value), run_dir, sketch_or_error(told(value)))
        if not (summary := finished(trial)):
            if options.dry_run:
                print(f"# trial {len(tried) + 1} of at most {options.trials}\n{trial.command}")
                return 0
            make_folder(out)
            with stoppable():
                run_all([trial], 1, lambda line: print(line.removeprefix("[1/1] "), flush=True))
            if not (summary := finished(trial)):  # run_all has said why
                return 1
        tried[value] = trial, summary
        is_met = abs(summary.sparsity - target) <= options.tolerance / 100 + 1e-9  # half a point exactly is within
        obstacle = f": --trials {2 * len(tried)} goes on" if len(tried) >= options.trials else ""
        try:
            value = proposals.send(miss(summary.sparsity, target, summary.prunable))
        except StopIteration:
            obstacle = ", and no value is left to try: widen the range, or the tolerance"

    print(f"\n{setting:>24}  sparsity   top-1 %      M MACs")
    for value, (_, summary) in sorted(tried.items()):
        print(f"{value:>24g} {summary.sparsity:9.2%} {summary.top1:9.2f} {summary.macs / 1e6:11,.2f}")
    trial, summary = min(tried.values(), key=lambda each: abs(each[1].sparsity - target))
    print(
        f"\n{trial.name} is nearest: {summary.sparsity:.2%}, {'within' if is_met else 'OUTSIDE'} the tolerance of "
        f"{options.tolerance:g} points around {target:.2%}{'' if is_met else obstacle}"
    )
    print(f"run      {trial.run_dir}\nrepeat   {shlex.join(['st3-train', *trial.overrides[:-1]])}")
    return 0 if is_met else 1


def parse_range(overrides: Sequence[str]) -> tuple[str, float, float]:
    """The setting that has a range, LOW and HIGH. Raises `UserError` for what cannot be searched."""
    ranges = []
    for override in overrides:
        setting, _, value = override.partition("=")
        if instead := {"run_dir": "--out", "dry_run": "--dry-run"}.get(setting):
            raise UserError(f"{override}: write {instead}")
        with suppress(ValueError):
            low, high = map(float, value.split(".."))
            ranges.append((override, setting, low, high))
    if len(ranges) != 1:
        raise UserError(f"give one setting a range, as in method.threshold_init=-8..-2, not {len(ranges)}")
    override, setting, low, high = ranges[0]
    if setting in ("sparsity", "seed") or not (low < high and 0 < low * high < math.inf):
        raise UserError(f"{override}: a range is LOW..HIGH, both positive or both negative, of a setting of the method")
    return setting, low, high


def values(low: float, high: float) -> Generator[float, float, None]:
    """The values to try, of three or four digits. Send how far off the target each came (`miss`) to get the next.

    First the ends. Then, while two values miss to different sides, where the straight line through their misses, over
    the logarithm of the values, is zero (regula falsi), or the middle where that is one of the two. The miss of a value
    that stays counts half each time (Illinois): it would stay for ever where the curve bends.
    """
    a, b = math.log(abs(low)), math.log(abs(high))
    miss_a = yield low
    miss_b = yield high
    while miss_a * miss_b < 0:
        places = a + (b - a) * miss_a / (miss_a - miss_b), (a + b) / 2
        decimals = (float(f"{math.exp(place):.{digits}g}") for place in places for digits in (3, 4))
        value = next((each for each in decimals if min(a, b) < math.log(each) < max(a, b)), None)
        if value is None:
            return
        missed = yield math.copysign(value, low)
        a, miss_a = (b, miss_b) if missed * miss_b < 0 else (a, miss_a / 2)
        b, miss_b = math.log(value), missed


def miss(sparsity: float, target: float, weights: int) -> float:
    """How far off the target an outcome is, in log-odds; positive is too sparse. 0 and 1, whose log-odds are infinite,
    count as half of one of the `weights` away from them."""
    inside = min(max(sparsity, 0.5 / weights), 1 - 0.5 / weights)
    return math.log(inside / (1 - inside)) - math.log(target / (1 - target))
