"""`st3 search`: the values that it tries, on closed forms, and what it makes of finished trials."""

import math
import shlex
from functools import cache
from pathlib import Path

import pytest
from fake_runs import fake_run, fake_summary

from st3.cli import main
from st3.tables import plan, workers
from st3.tables.search import miss, values
from st3.tables.workers import Outcome

WEIGHTS = 100_000
TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=64", "dataset.test_images=20", "dataset.classes=7",
    "batch_size=32", "epochs=1", "method=str", "sparsity=0.8",
]  # fmt: skip


# The values -----------------------------------------------------------------------------------------------------------


def logistic(middle: float, steepness: float):
    """Log-odds that are linear in the logarithm of the value's magnitude."""
    return lambda value: 1 / (1 + math.exp(-steepness * math.log(abs(value) / middle)))


def trials(outcome, low, high, target) -> dict[float, float]:
    """Sparsity by value, in the order of the trials; the last met the target, or there was nothing left to try."""
    tried = {}
    proposals = values(low, high)
    value = next(proposals)
    while True:
        assert low <= value <= high
        assert value not in tried
        tried[value] = outcome(value)
        if abs(tried[value] - target) <= 0.005:
            return tried
        try:
            value = proposals.send(miss(tried[value], target, WEIGHTS))
        except StopIteration:
            return tried


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("steepness", [1.2, -1.2])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_closed_form_that_it_assumes_takes_three_trials_and_a_fourth_for_digits(target, steepness, sign):
    low, high = sorted((sign * 1e-5, sign * 1.0))
    tried = trials(logistic(3e-3, steepness), low, high, target)
    assert list(tried)[:2] == [low, high]
    assert abs(list(tried.values())[-1] - target) <= 0.005
    assert len(tried) <= 4


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize(
    "outcome",
    [
        logistic(2e-4, 40),
        logistic(2e-4, -40),
        lambda v: min(1.0, v / 2e-3),  # linear, and at its end
        lambda v: max(0.0, 1 - v / 2e-3),
        lambda v: 1 - math.exp(-v / 3e-4),
        lambda v: 0.995 / (1 + (1e-4 / v) ** 3),  # nearly level at 0.99
        lambda v: math.erf(1 / (1 + math.exp(min(100 * math.exp(-3e3 * v), 700))) / 0.05),  # STR's decay: a cliff
        lambda v: 1 / (1 + (1e-3 / v) ** (1 if v < 1e-3 else 12)),  # a bend: plain regula falsi takes 37 trials
    ],
)
def test_other_monotone_outcomes_are_met(outcome, target):
    tried = trials(outcome, 1e-5, 1e-2, target)
    assert abs(list(tried.values())[-1] - target) <= 0.005
    assert len(tried) <= 16
    assert all(value == float(f"{value:.4g}") for value in tried)


def test_ends_that_miss_to_the_same_side_are_all_that_is_tried():
    assert list(trials(logistic(1, 2), 1e-5, 1e-2, 0.9)) == [1e-5, 1e-2]


def test_a_jump_over_the_target_ends_with_neighbouring_values():
    tried = trials(lambda v: float(v > 1.23456e-3), 1e-5, 1e-2, 0.9)
    assert {1.234e-3, 1.235e-3} <= tried.keys()
    assert len(tried) < 30


def test_the_miss_is_finite_and_has_the_sign_of_the_excess():
    assert miss(0.8, 0.8, 10) == 0
    assert miss(0, 0.8, 10) == miss(0.05, 0.8, 10) < miss(0.1, 0.8, 10) < 0 < miss(0.9, 0.8, 10) < miss(1, 0.8, 10)
    assert miss(1, 0.5, 10) == pytest.approx(math.log(0.95 / 0.05))


# The command ----------------------------------------------------------------------------------------------------------


_sketch = cache(plan.sketch_or_error)
"""Several searches below ask for the same trials."""


def search(*words: str) -> int:
    return main(["search", *words])


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(here, monkeypatch) -> list[str]:
    """Names of the runs that were trained. Their log-odds of sparsity are a straight line, 50 % at −3."""
    names = []

    def run_all(tasks, jobs, say):
        for task in tasks:
            if "epochs=3" in task.overrides:
                raise KeyboardInterrupt
            value = task.checked().config.method.threshold_init
            if value == -7:
                return Outcome(broken=[(task, "out of memory")])
            names.append(task.run_dir.name)
            sparsity = logistic(3, -2)(value)
            fake_run(
                task.run_dir, fake_summary(sparsity=sparsity, macs=2_000_000), config=task.checked().config.plain()
            )
            say(f"[1/1] {task.name}: done")
        return Outcome()

    monkeypatch.setattr(workers, "run_all", run_all)
    monkeypatch.setattr(plan, "sketch_or_error", lambda overrides: _sketch(tuple(overrides)))
    return names


@pytest.mark.slow
def test_a_search_is_reported_and_repeated_without_training(trained, here, capsys):
    command = ["method.threshold_init=-12..-1", *TINY]
    assert search(*command) == 0
    out = capsys.readouterr().out
    assert trained[:2] == ["threshold_init--12-s0", "threshold_init--1-s0"]
    assert len(trained) <= 4
    folder = here / "outputs" / "search" / "resnet20-fake-str-0.8"
    assert sorted(path.name for path in folder.iterdir()) == sorted(trained)
    assert "\nmethod.threshold_init=-1: done\n" in out
    report = out[out.index("\n\n") :]
    table = [line.split() for line in report.split("\n\n")[1].splitlines()[1:]]
    assert [float(row[0]) for row in table] == sorted(float(row[0]) for row in table)
    assert len(table) == len(trained)
    best = min(table, key=lambda row: abs(float(row[1].rstrip("%")) - 80))
    assert best[2:] == ["50.00", "2.00"]
    assert (
        f"method.threshold_init={best[0]} is nearest: {best[1]}, within the tolerance of 0.5 points around 80.00%"
        in out
    )
    assert f"run      outputs/search/resnet20-fake-str-0.8/threshold_init-{best[0]}-s0\n" in out
    assert out.endswith(f"repeat   st3-train method.threshold_init={best[0]} {shlex.join(TINY)}\n")

    count = len(trained)
    assert search(*command) == 0
    assert len(trained) == count
    assert "\n" + capsys.readouterr().out == report


@pytest.mark.slow
def test_another_seed_has_its_own_trials_and_other_settings_are_refused(trained, capsys):
    command = ["method.threshold_init=-12..-1", *TINY, "--trials", "1"]
    assert [search(*command), search(*command, "seed=1"), search(*command, "optimizer.lr=0.2")] == [1, 1, 2]
    assert trained == ["threshold_init--12-s0", "threshold_init--12-s1"]
    assert "holds a run with optimizer.lr=0.1, not 0.2: choose another" in capsys.readouterr().err


def test_the_trials_end_and_more_of_them_go_on(trained, capsys):
    command = ["method.threshold_init=-12..-1", *TINY, "--out", "out"]
    assert search(*command, "--trials", "1") == 1
    assert len(trained) == 1
    assert "OUTSIDE the tolerance of 0.5 points around 80.00%: --trials 2 goes on\n" in capsys.readouterr().out
    assert search("--tolerance", "80", *command) == 0
    assert len(trained) == 1
    assert search(*command) == 0
    assert len(trained) > 2


def test_a_range_that_misses_is_said(trained, capsys):
    assert search("method.threshold_init=-12..-4", *TINY) == 1
    assert len(trained) == 2
    assert "OUTSIDE the tolerance of 0.5 points around 80.00%, and no value is left to try" in capsys.readouterr().out


def test_a_dry_run_says_the_next_command_and_writes_nothing(trained, here, capsys):
    command = ["method.threshold_init=-12..-1", *TINY, "--out", "out"]
    assert search(*command, "--dry-run") == 0
    assert capsys.readouterr().out == (
        f"# trial 1 of at most 8\npython -m st3.train method.threshold_init=-12 {' '.join(TINY)} "
        "run_dir=out/threshold_init--12-s0\n"
    )
    assert not list(here.iterdir())
    search(*command, "--trials", "1")
    capsys.readouterr()
    search(*command, "--dry-run")
    assert capsys.readouterr().out.startswith("# trial 2 of at most 8\n")
    assert len(trained) == 1


def test_a_trial_that_is_broken_or_interrupted_ends_the_search(trained, capsys):
    assert search("method.threshold_init=-7..-1", *TINY) == 1
    assert search("method.threshold_init=-12..-1", *TINY, "epochs=3") == 130
    assert capsys.readouterr().out.endswith("interrupted; the same command continues\n")
    assert not trained


RANGE = "method.threshold_init=-8..-2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("method.threshold_init=-8", "give one setting a range, as in method.threshold_init=-8..-2, not 0"),
        (f"{RANGE} optimizer.lr=0.1..1", "give one setting a range, as in method.threshold_init=-8..-2, not 2"),
        ("method.threshold_init=-8..2", "method.threshold_init=-8..2: a range is LOW..HIGH, both positive or both neg"),
        ("method.threshold_init=-2..-8", "a range is LOW..HIGH"),
        ("method.threshold_init=0..2", "a range is LOW..HIGH"),
        ("method.threshold_init=1..inf", "a range is LOW..HIGH"),
        ("method.threshold_init=nan..2", "a range is LOW..HIGH"),
        ("sparsity=0.5..0.9", "sparsity=0.5..0.9: a range is LOW..HIGH, "),
        ("method.threshold_int=-8..-2", "did you mean method.threshold_init"),
        ("method.threshold_decay=-8..-2", "method.threshold_decay=-8 must not be negative"),
        ("optimizer.lr=0.1..1 method=st3", "method=st3 meets sparsity=0.8 by itself: there is nothing to search"),
        (f"{RANGE} sparsity=0", "method=str meets sparsity=0 by itself: there is nothing to search"),
        (f"{RANGE} method.exclude=[nothing]", "method.exclude: no Conv2d or Linear layer is named like"),
        (f"{RANGE} run_dir=x", "run_dir=x: write --out"),
        (f"{RANGE} dry_run=true", "dry_run=true: write --dry-run"),
        (f"{RANGE} --trials 0", "argument --trials: 0 must be at least 1"),
        (f"{RANGE} --tolerance 0", "argument --tolerance: 0 must be positive"),
    ],
)
def test_a_mistake_ends_in_one_line_and_trains_nothing(arguments, says, trained, here, capsys):
    (here / "file").touch()
    assert search(*TINY, *arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("st3 search: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == [here / "file"]
    assert not trained


def test_a_folder_that_cannot_be_made_is_a_matter_of_the_disk(trained, here, capsys):
    (here / "file").touch()
    assert search(*TINY, *RANGE.split(), "--out", "file/out") == 6
    assert "--out file/out cannot be created (Not a directory): choose another" in capsys.readouterr().err
