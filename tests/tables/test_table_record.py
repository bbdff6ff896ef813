"""`st3 reproduce --record`, with a stub for the training: what is on record is not trained, and what is goes there."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
from fake_runs import fake_layer, fake_run, fake_summary
from table_cases import RUNS, SMALL, small_tasks, starts

from st3.cli import main

ALL = [["dense-0", "0"], ["st-3-80", "0"], ["linear-80", "0"]]


def reproduce(*words: str) -> int:
    return main(["reproduce", "small.yaml", "--record", "record.csv", *words])


def lines(path="record.csv") -> list[list[str]]:
    """Row and seed of each line."""
    with open(path, newline="", encoding="utf-8") as file:
        return [[line["row"], line["seed"]] for line in csv.DictReader(file)]


def table_of(out: Path) -> str:
    """Without the links to run directories."""
    return re.sub(r"\[(s\d+)\]\([^)]*\)", r"\1", (out / "report" / "table.md").read_text())


def elsewhere(here: Path) -> None:
    """The same folder on another machine, which shares nothing with the first but the record."""
    shutil.rmtree(here / "out")
    (here / "starts").unlink()


def test_two_machines_that_share_the_record_make_the_report_of_one(stub, here, capsys):
    for seed, top1 in enumerate((60.0, 61.5, 64.0)):
        for number, row in enumerate(("dense-0", "st-3-80", "linear-80")):
            summary = fake_summary(epochs=2, top1=top1 + number, seed=seed, sparsity=0.8 if number else 0.0)
            (stub / f"{row}-s{seed}" / "summary.json").write_text(json.dumps(summary.plain()))
    assert main(["reproduce", "small.yaml", "--out", "one", "--seeds", "0..2"]) == 0
    (here / "starts").unlink()

    assert reproduce("--out", "out", "--rows", "dense*,st-3*", "--seeds", "0..1") == 0
    elsewhere(here)
    assert reproduce("--out", "out", "--seeds", "0..2") == 0
    assert "4 of 9 runs are in record.csv, and are not trained again\n5 runs: " in capsys.readouterr().out
    assert starts(here) == ["dense-0-s2", "linear-80-s0", "linear-80-s1", "linear-80-s2", "st-3-80-s2"]
    assert lines() == [[row, seed] for row in ("dense-0", "st-3-80", "linear-80") for seed in "012"]
    assert table_of(here / "out") == table_of(here / "one")
    assert "62.83 ± 5.02" in table_of(here / "out")  # 4.303·2.0207/√3

    elsewhere(here)
    assert reproduce("--out", "out", "--report-only") == 0
    assert table_of(here / "out") == table_of(here / "one")
    assert (here / "out" / "report" / "table.tex").read_text() == (here / "one" / "report" / "table.tex").read_text()


def test_every_run_is_recorded_before_the_next_begins(stub, here):
    """The third one looks into the record when it starts."""
    (stub / "stub.py").write_text(
        (stub / "stub.py").read_text() + '\nif "linear" in folder.name:\n    shutil.copy("record.csv", "seen.csv")\n'
    )
    assert reproduce("--out", "out") == 0
    assert lines("seen.csv") == ALL[:2]
    assert lines() == ALL


def test_what_was_finished_before_there_was_a_record_is_put_into_it(stub, here):
    assert main(["reproduce", "small.yaml", "--out", "out"]) == 0
    assert reproduce("--out", "out", "--report-only") == 0
    assert lines() == ALL
    (here / "record.csv").unlink()
    assert reproduce("--out", "out") == 0
    assert lines() == ALL
    assert starts(here) == RUNS


def test_a_dry_run_shows_what_is_still_to_be_trained(stub, here, capsys):
    assert reproduce("--out", "out", "--rows", "dense*") == 0
    elsewhere(here)
    before = (here / "record.csv").read_bytes()
    capsys.readouterr()
    assert reproduce("--out", "out", "--dry-run") == 0
    out = capsys.readouterr().out.splitlines()
    assert "# 1 of 3 runs are in record.csv, and are not trained again" in out
    commands = [line for line in out if not line.startswith("#")]
    assert [command.rpartition("/")[2] for command in commands] == ["st-3-80-s0", "linear-80-s0"]
    assert (here / "record.csv").read_bytes() == before
    assert not (here / "out").exists()


def test_lines_of_other_settings_are_named_left_out_and_stay_until_they_are_replaced(stub, here, capsys):
    assert reproduce("--out", "out") == 0
    elsewhere(here)
    (here / "small.yaml").write_text(SMALL.replace("schedule.power=1", "schedule.power=2"))
    capsys.readouterr()
    said = "1 of 3 lines of record.csv are of other settings than the table has now: left out, until runs of their rows"
    before = (here / "record.csv").read_bytes()
    assert reproduce("--out", "out", "--report-only") == 0
    out = capsys.readouterr().out
    assert said in out
    assert "2 runs in 2 of 4 rows" in out
    assert (here / "record.csv").read_bytes() == before
    assert reproduce("--out", "out", "--dry-run") == 0
    assert f"# {said}" in capsys.readouterr().out

    [task] = [each for each in small_tasks((0,)) if "linear" in each.name]
    config = task.checked().config.plain()
    config["schedule"]["power"] = 2.0
    overrides = ["schedule.power=2" if each == "schedule.power=1" else each for each in task.overrides]
    shutil.rmtree(stub / "linear-80-s0")
    fake_run(
        stub / "linear-80-s0", fake_summary(epochs=2, top1=12.5), config=config, overrides=overrides,
        layers=[fake_layer("conv", 0.8)],
    )  # fmt: skip
    assert reproduce("--out", "out") == 0
    assert starts(here) == ["linear-80-s0"]
    after = (here / "record.csv").read_text().splitlines()
    assert after[:3] == before.decode().splitlines()[:3]
    assert after[3].startswith("linear-80,0,")
    assert ",12.5," in after[3]
    capsys.readouterr()
    assert reproduce("--out", "out", "--report-only") == 0
    assert "other settings" not in capsys.readouterr().out


def test_overrides_are_settings_of_the_table_for_as_long_as_they_are_typed(stub, here, capsys):
    """What is said here and there of where and how a run runs is not."""
    assert reproduce("--out", "out", "--rows", "dense*") == 0
    elsewhere(here)
    capsys.readouterr()
    assert reproduce("--out", "out", "--dry-run", "--rows", "dense*", "label_smoothing=0.1") == 0
    assert "1 of 1 lines of record.csv are of other settings" in (out := capsys.readouterr().out)
    assert "# 1 runs: " in out
    assert reproduce("--out", "out", "--dry-run", "--rows", "dense*", "log_every=7") == 0
    assert "# 0 runs: " in capsys.readouterr().out


def test_a_run_directory_of_other_settings_is_shown_as_ever_and_never_recorded(stub, here, capsys):
    assert reproduce("--out", "out") == 0
    before = (here / "record.csv").read_bytes()
    (here / "small.yaml").write_text(SMALL.replace("schedule.power=1", "schedule.power=2"))
    capsys.readouterr()
    assert reproduce("--out", "out", "--report-only") == 0
    out = capsys.readouterr().out
    assert "1 runs in out have other settings than the table, and are not put into record.csv" in out
    assert "3 runs in 3 of 4 rows" in out
    assert "1 of 3 runs depart from the table's own settings" in table_of(here / "out")
    assert (here / "record.csv").read_bytes() == before


def test_a_damaged_record_is_refused_before_anything_is_trained(stub, here, capsys):
    (here / "record.csv").write_text("row,seed\n")
    for words in ([], ["--dry-run"], ["--report-only"]):
        assert reproduce("--out", "out", *words) == 4
        err = capsys.readouterr().err
        assert err.startswith("st3 reproduce: error: --record record.csv, line 1: its columns lack settings")
        assert err.count("\n") == 1
    assert starts(here) == []
    assert (here / "record.csv").read_text() == "row,seed\n"


def test_a_record_that_is_damaged_while_runs_go_on_stops_none_of_them(stub, here, capsys):
    """Its folders stay, and so the same command records them all once it is mended."""
    (stub / "stub.py").write_text(
        (stub / "stub.py").read_text() + '\npathlib.Path("record.csv").write_text("<<<<<<< ours\\n")\n'
    )
    assert reproduce("--out", "out") == 4
    caught = capsys.readouterr()
    assert "Dense, seed 0 is not on record yet: --record record.csv, line 1: its columns lack row" in caught.out
    assert "--record record.csv, line 1" in caught.err
    assert starts(here) == RUNS
    (here / "record.csv").unlink()
    assert reproduce("--out", "out") == 0
    assert lines() == ALL


@pytest.mark.parametrize("name", ["given", "given/stub.py/record.csv"])
def test_a_record_that_cannot_be_is_refused_at_once(name, stub, here, capsys):
    assert main(["reproduce", "small.yaml", "--out", "out", "--record", name]) == 2
    assert f"error: --record: cannot read {name}" in capsys.readouterr().err
    assert starts(here) == []
