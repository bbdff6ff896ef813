"""The one command for a GPU, at tiny sizes on the CPU: it runs everything, keeps what it has and writes its table."""

import json

import gpu_proof
import pytest
from gpu_proof import AIMS, STEPS, Aim, Step, do, main, table


def test_everything_it_would_do_ends_within_28_minutes():
    assert sum(step.limit for step in STEPS.values()) <= 28 * 60
    assert max(step.limit for step in STEPS.values()) <= 10 * 60


@pytest.mark.slow
def test_each_step_runs_and_leaves_its_figures(tmp_path, capsys):
    main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    notes = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in STEPS}
    assert {name: note["trouble"] for name, note in notes.items()} == {name: [] for name in STEPS}
    assert printed.endswith(table(tmp_path) + "\n")
    assert "no figure here means anything" in printed
    found = {key for note in notes.values() for key in note["figures"]}
    assert found <= AIMS.keys()
    # All that needs no GPU is there.
    assert {"tests failed", "top-1 of the dense one, %", "recipe=cifar10_resnet20, 98 %: s after warm-up"} <= found
    rows = [line for line in table(tmp_path).splitlines() if line.startswith("|")][2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == list(AIMS)
    main(["--quick", "--out", str(tmp_path)])
    assert capsys.readouterr().out.startswith("".join(f"{name}: is there\n" for name in STEPS))


def test_what_ends_at_its_limit_leaves_the_figures_before(tmp_path, monkeypatch):
    commands = [["-c", "print(1)"], ["-c", "import time; time.sleep(60)"], ["-c", "print(2)"]]
    step = Step("three", 3, lambda folder, root, quick: commands, lambda folder: {"tests passed": 7.0})
    monkeypatch.setitem(STEPS, "tests", step)
    said = do("tests", tmp_path, None, quick=True)
    assert "ended at its limit of" in said
    assert "no time was left" in said
    note = json.loads((tmp_path / "tests.json").read_text())
    assert note["figures"] == {"tests passed": 7.0}
    assert len(note["trouble"]) == 2
    assert "| tests passed | 7 |" in table(tmp_path)


def test_what_fails_or_leaves_nothing_is_said_and_the_next_step_runs(tmp_path, monkeypatch, capsys):
    def nothing(folder):
        raise FileNotFoundError("no such file")

    monkeypatch.setattr(gpu_proof, "STEPS", {
        "tests": Step("fails", 30, lambda *_: [["-c", "raise SystemExit(3)"]], nothing),
        "projection": Step("works", 30, lambda *_: [["-c", "pass"]], lambda folder: {"tests failed": 0}),
    })  # fmt: skip
    main(["--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "exit code 3" in printed
    assert "no figures (FileNotFoundError: no such file)" in printed
    assert "projection: done\n" in printed


@pytest.mark.parametrize(
    ("aim", "value", "verdict"),
    [
        (Aim("{}", 1.0, 2.0), 1.0, "as aimed"),
        (Aim("{}", 1.0, 2.0), 1.5, "within"),
        (Aim("{}", 1.0, 2.0), 2.1, "MISSED"),
        (Aim("{}", 5600, 5200, more_is_better=True), 6000, "as aimed"),
        (Aim("{}", 5600, 5200, more_is_better=True), 5300, "within"),
        (Aim("{}", 5600, 5200, more_is_better=True), 5000, "MISSED"),
        (Aim("{}"), 5000, ""),
    ],
)
def test_a_figure_is_as_aimed_within_its_bound_or_missed(aim, value, verdict):
    assert aim.verdict(value) == verdict


def test_unknown_steps_are_refused_and_a_list_runs_nothing(capsys):
    with pytest.raises(SystemExit):
        main(["--only", "test", "--out", "x"])
    assert "test is none of tests, projection" in capsys.readouterr().err
    main(["--list", "--only", "tests,recipe"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["tests", "recipe"]
