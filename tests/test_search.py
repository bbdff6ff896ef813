"""The search for a sparsity: on closed forms, then as a command.

Where only the handling of trials matters, a stub stands for the training: it writes what a run directory holds.
"""

import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import st3.search
from st3.reproduce import Outcome
from st3.search import main, miss, next_value

WEIGHTS = 100_000
TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=64", "dataset.test_images=20", "dataset.classes=7",
    "batch_size=32", "epochs=1", "method=str", "schedule=constant", "sparsity=0.8",
]  # fmt: skip


# Which value to try ---------------------------------------------------------------------------------------------------


def trials(outcome, low, high, target, *, at_most=40, tolerance=0.005) -> dict[float, float]:
    """Sparsity by value, in the order of the trials; the last met the target, or there was nothing left to try."""
    tried = {}
    while len(tried) < at_most:
        value = next_value({each: miss(tried[each], target, WEIGHTS) for each in tried}, low, high)
        if value is None:
            break
        assert low <= value <= high
        assert value not in tried
        tried[value] = outcome(value)
        if abs(tried[value] - target) <= tolerance:
            break
    return tried


def met(tried: dict[float, float], target: float) -> bool:
    return abs(list(tried.values())[-1] - target) <= 0.005


def logistic(middle: float, steepness: float):
    """Log-odds that are linear in the logarithm of the value's magnitude."""
    return lambda value: 1 / (1 + math.exp(-steepness * math.log(abs(value) / middle)))


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("steepness", [1.2, 4, -1.2, -4])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_closed_form_that_it_assumes_takes_few_trials(target, steepness, sign):
    # Two trials say all; one more for the digits, and one for a second trial to the wrong side.
    low, high = sorted((sign * 1e-5, sign * 1.0))
    tried = trials(logistic(3e-3, steepness), low, high, target)
    assert met(tried, target)
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
    ],
)
def test_other_monotone_outcomes_are_met(outcome, target):
    tried = trials(outcome, 1e-5, 1e-2, target)
    assert met(tried, target)
    assert len(tried) <= 14  # bisection takes up to 13 for the cliff, and up to 12 for the others
    assert all(value == float(f"{value:.4g}") for value in tried)


def test_a_bend_does_not_hold_it_up():
    # Plain regula falsi takes 37 trials here, for it keeps the end on the steep side.
    tried = trials(lambda v: 1 / (1 + (1e-3 / v) ** (1 if v < 1e-3 else 12)), 1e-5, 1e-2, 0.5)
    assert met(tried, 0.5)
    assert len(tried) <= 8


def test_ends_that_miss_are_told_after_the_ends_have_been_tried():
    rising = trials(logistic(1, 2), 1e-5, 1e-2, 0.9)
    assert list(rising)[-1] == 1e-2
    assert 1e-5 not in rising  # the trials have shown which way it goes
    assert len(rising) <= 3
    falling = trials(logistic(3e-6, -2), -1e-2, -1e-5, 0.9)
    assert list(falling)[-1] == -1e-5
    assert -1e-2 not in falling


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_a_level_outcome_is_given_up_when_both_ends_are_tried(level):
    tried = trials(lambda _: level, 1e-5, 1e-2, 0.9)
    assert {1e-5, 1e-2} <= tried.keys()
    assert len(tried) == 4


def test_noise_does_not_decide_where_to_look():
    # Level but for noise, then rising: the first two trials seem to fall.
    tried = trials(lambda v: 0.101 - v if v < 5e-3 else 0.99 - 1e-4 / v, 1e-5, 1e-2, 0.9)
    assert 1e-2 in tried
    # Of several crossings the nearest is followed.
    assert 2e-4 < next_value({1e-4: -3, 2e-4: 0.3, 3e-4: -0.2, 1e-3: 2}, 1e-5, 1e-2) < 3e-4


def test_a_jump_over_the_target_ends_with_neighbouring_values():
    tried = trials(lambda v: float(v > 1.23456e-3), 1e-5, 1e-2, 0.9)
    below, above = max(v for v in tried if not tried[v]), min(v for v in tried if tried[v])
    assert (below, above) == (1.234e-3, 1.235e-3)
    assert not {1e-5, 1e-2} & tried.keys()
    assert len(tried) < 30


def test_the_next_value_depends_on_the_set_of_trials_alone():
    known = {1e-4: -3.0, 1e-3: 2.0, 3e-4: -1.0, 2e-3: 4.0}
    value = next_value(known, 1e-5, 1e-2)
    assert 3e-4 < value < 1e-3
    assert next_value(dict(sorted(known.items())), 1e-5, 1e-2) == value
    assert 1e-5 < next_value({1e-2: 2.0}, 1e-5, 1e-2) < 1e-2
    assert 1e-5 < next_value({1e-5: 2.0}, 1e-5, 1e-2) < 1e-2
    assert next_value({-each: missed for each, missed in known.items()}, -1e-2, -1e-5) == -value


def test_the_miss_is_finite_and_has_the_sign_of_the_excess():
    assert miss(0.8, 0.8, 10) == 0
    assert miss(0, 0.8, 10) == miss(0.05, 0.8, 10) < miss(0.1, 0.8, 10) < 0 < miss(0.9, 0.8, 10) < miss(1, 0.8, 10)
    assert miss(1, 0.5, 10) == pytest.approx(math.log(0.95 / 0.05))


# The command, with a stub for the training ----------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def trained(here, monkeypatch) -> list[str]:
    """Names of the runs that were trained. Sparsity σ(2·ln(value / −3)) of the magnitude, falling with it."""
    names = []

    def run_all(tasks, jobs, say):
        for task in tasks:
            value = task.config.method.threshold_init
            if value == -3.5:
                return Outcome(broken=[(task, "out of memory")])
            if value == -3.6:
                return Outcome(held=[(task, "process 7 on elsewhere")])
            names.append(task.run_dir.name)
            task.run_dir.mkdir(parents=True)
            (task.run_dir / "config.yaml").write_text(yaml.safe_dump(asdict(task.config)))
            summary = {"sparsity": logistic(3, -2)(value), "top1": 50.0, "macs": 2e6, "prunable": WEIGHTS}
            (task.run_dir / "summary.json").write_text(json.dumps(summary | {"finished": True}))
            say(f"[1/1] {task.name}: done")
        return Outcome()

    monkeypatch.setattr(st3.search, "run_all", run_all)
    return names


def test_a_search_is_reported_and_repeated_without_training(trained, here, capsys):
    command = ["method.threshold_init=-12..-1", *TINY]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert 2 <= len(trained) <= 4
    assert trained[0] == "threshold_init--3.46-s0"
    folder = here / "outputs" / "search" / "resnet20-fake-str-0.8"
    assert sorted(path.name for path in folder.iterdir()) == sorted(trained)
    assert "[1] method.threshold_init=-3.46, seed 0: done" in out
    report = out[out.index("\n\n") :]
    table = [line.split() for line in report.split("\n\n")[1].splitlines()[1:]]
    assert len(table) == len(trained)
    assert [float(row[0]) for row in table] == sorted(float(row[0]) for row in table)
    (best,) = [row for row in table if row[-1] == "nearest"]
    assert abs(float(best[1].rstrip("%")) - 80) <= 0.5
    assert best[2:4] == ["50.00", "2.00"]
    assert f"method.threshold_init={best[0]} comes out " in out
    assert ": within the tolerance of 0.5" in out
    assert f"repeat   st3-train {' '.join(TINY)} method.threshold_init={best[0]} seed=0" in out

    count = len(trained)
    assert main(command) == 0
    assert len(trained) == count
    assert "\n" + capsys.readouterr().out == report
    # Another range that the nearest lies in takes it over, another seed does not.
    assert main(["method.threshold_init=-2.5..-1", *TINY]) == 0
    assert len(trained) == count
    assert main([*command, "seed=1"]) == 0
    assert len(trained) > count
    assert all(name.endswith("-s1") for name in trained[count:])


def test_the_trials_end_and_more_of_them_go_on(trained, capsys):
    command = ["method.threshold_init=-12..-1", *TINY, "--out", "out"]
    assert main([*command, "--trials", "1"]) == 1
    assert len(trained) == 1
    out = capsys.readouterr().out
    assert ": OUTSIDE the tolerance of 0.5" in out
    assert "1 trials are made: --trials 2 goes on" in out
    assert main([*command, "--tolerance", "40"]) == 0
    assert len(trained) == 1
    assert main(command) == 0
    assert len(trained) > 1


def test_a_range_that_misses_says_where_to_widen_it(trained, capsys):
    assert main(["method.threshold_init=-12..-4", *TINY, "--out", "out"]) == 1
    assert len(trained) <= 4
    out = capsys.readouterr().out
    assert "does not reach it, only " in out
    assert out.endswith(" to 36.00%: widen the range, method.threshold_init=-12..-0.4\n")
    assert main(["method.threshold_init=-1.2..-0.1", *TINY, "--out", "out"]) == 1
    assert capsys.readouterr().out.endswith("widen the range, method.threshold_init=-12..-0.1\n")


def test_a_dry_run_says_the_next_command_and_writes_nothing(trained, here, capsys):
    command = ["method.threshold_init=-12..-1", *TINY, "--out", "out"]
    assert main([*command, "--dry-run"]) == 0
    assert capsys.readouterr().out == (
        f"# trial 1 of at most 8\npython -m st3.train {' '.join(TINY)} method.threshold_init=-3.46 seed=0 "
        "run_dir=out/threshold_init--3.46-s0\n"
    )
    assert not list(here.iterdir())
    main([*command, "--trials", "1"])
    capsys.readouterr()
    main([*command, "--dry-run"])
    assert capsys.readouterr().out.startswith("# trial 2 of at most 8\n")
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("low", "says"),
    [
        (
            "-12.25",
            "-3.5, seed 0 is broken; the same command tries it again (see out/threshold_init--3.5-s0.log): out of",
        ),
        ("-12.96", "-3.6, seed 0 is left to process 7 on elsewhere"),
    ],
)
def test_a_trial_that_cannot_be_made_ends_the_search(low, says, trained, capsys):
    assert main([f"method.threshold_init={low}..-1", *TINY, "--out", "out"]) == 1
    assert capsys.readouterr().out.startswith(f"method.threshold_init={says}")
    assert not trained


def test_trials_with_other_settings_are_not_mixed(trained, here, capsys):
    command = ["method.threshold_init=-12..-1", *TINY, "--out", "out"]
    assert main(command) == 0
    count = len(trained)
    assert main([*command, "optimizer.lr=0.2"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("search: error: choose another --out: run_dir=out/threshold_init--")
    assert "holds a run with optimizer.lr=0.1, not 0.2" in err
    assert len(trained) == count


RANGE = "method.threshold_init=-8..-2"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("method.threshold_init=-8", "give one setting a range, as in method.threshold_init=-8..-2 (now it is none)"),
        (f"{RANGE} optimizer.lr=0.1..1", "(now it is method.threshold_init, optimizer.lr)"),
        ("method.threshold_init=-8..2", "method.threshold_init=-8..2: write LOW..HIGH, both positive or both negative"),
        ("method.threshold_init=-2..-8", "write LOW..HIGH"),
        ("method.threshold_init=-2..-2", "write LOW..HIGH"),
        ("method.threshold_init=0..2", "write LOW..HIGH"),
        ("method.threshold_init=1..inf", "write LOW..HIGH"),
        ("method.threshold_init=nan..2", "write LOW..HIGH"),
        ("method.threshold_int=-8..-2", "method.threshold_int is not a setting: did you mean method.threshold_init"),
        ("method.threshold_decay=-8..-2", "method.threshold_decay=-8 must not be negative"),
        ("sparsity=0.5..0.9", "sparsity=0.5..0.9: sparsity takes one value"),
        ("seed=1..9", "seed=1..9: seed takes one value"),
        (f"{RANGE} method=st3 schedule=cubic", "method.threshold_init=-8.0 has no effect with method.name=st3"),
        ("optimizer.lr=0.1..1 method=st3", "method=st3 meets its sparsity by itself: there is nothing to search"),
        ("optimizer.lr=0.1..1 method=rigl", "method=rigl meets its sparsity by itself: there is nothing to search"),
        (f"{RANGE} schedule=cubic", "follows no ramp: schedule=constant"),
        (f"{RANGE} sparsity=0", "sparsity=0 is the dense network: there is nothing to search"),
        (f"{RANGE} method.exclude=[nothing]", "method.exclude: no Conv2d or Linear layer is named like"),
        (f"{RANGE} epoch=3", "did you mean epochs?"),
        (f"{RANGE} seed=0,1", "seed=0,1: a search has one seed"),
        (f"{RANGE} run_dir=x", "run_dir=x: write --out"),
        (f"{RANGE} dry_run=true", "dry_run=true: write --dry-run"),
        (f"{RANGE} --out file/out", "--out file/out cannot be created"),
    ],
)
def test_a_mistake_ends_in_one_line_and_trains_nothing(arguments, says, trained, here, capsys):
    (here / "file").touch()
    assert main([*TINY, *arguments.split()]) == 2
    err = capsys.readouterr().err
    assert err.startswith("search: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == [here / "file"]
    assert not trained


@pytest.mark.parametrize("option", ["--trials=0", "--tolerance=0", "--tolerance=a"])
def test_an_option_out_of_range_is_refused(option, here, capsys):
    with pytest.raises(SystemExit) as stop:
        main([RANGE, *TINY, option])
    assert stop.value.code == 2
    assert "invalid" in capsys.readouterr().err


# With real training ---------------------------------------------------------------------------------------------------


def test_real_training_is_found_continued_and_not_repeated(here, capsys, monkeypatch):
    command = ["method.threshold_init=-10..-1", *TINY, "--tolerance", "8", "--out", "out"]

    def interrupt(tasks, jobs, say):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(st3.search, "run_all", interrupt)
        assert main(command) == 130
    assert "interrupted; the same command continues" in capsys.readouterr().out

    assert main(command) == 0
    out = capsys.readouterr().out
    runs = {path.parent: json.loads(path.read_text()) for path in here.glob("out/*/summary.json")}
    (run,) = [line.split()[1] for line in out.splitlines() if line.startswith("run ")]
    assert abs(runs[here / run]["sparsity"] - 0.8) <= 0.08
    assert (here / run / "model.safetensors").exists()
    assert len(runs) == out.count(": started, see ")
    stamps = {path: path.stat().st_mtime_ns for path in here.glob("out/*/*")}
    assert main(command) == 0
    assert ": started" not in capsys.readouterr().out
    assert stamps == {path: path.stat().st_mtime_ns for path in here.glob("out/*/*")}
