"""`st3 report`."""

import pytest
from fake_runs import found_run

from st3.cli import main
from st3.report.found import common_folder


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two seeds in runs/, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for seed in (0, 1):
        found_run(tmp_path / "runs" / f"s{seed}", f"seed={seed}", top1=70.0 + seed)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "page"),
    [
        (["runs"], "runs/report.html"),
        (["runs/s0"], "runs/report.html"),
        (["runs/s0", "runs/s1"], "runs/report.html"),
        (["runs", "--out", "mine.html"], "mine.html"),
    ],
)
def test_the_table_is_printed_and_the_page_is_beside_the_runs(words, page, runs, capsys):
    assert main(["report", *words]) == 0
    out = capsys.readouterr().out
    assert out.endswith(f"\n\nreport     {page}\n")
    assert out.splitlines()[1].split()[:3] == ["st3", "90", "70.00" if words == ["runs/s0"] else "70.50"]
    text = (runs / page).read_text(encoding="utf-8")
    assert "<title>Runs in runs" in text
    assert ('href="runs/s0/"' if page == "mine.html" else 'href="s0/"') in text


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["nowhere"], 2, "nowhere is no folder: name run directories, or a folder that holds some"),
        (["runs", "empty"], 2, "empty holds no run of st3-train"),
        (["runs", "--out", "nowhere/mine.html"], 6, "cannot write nowhere/mine.html: No such file or directory"),
        ([], 2, "the following arguments are required: RUN|DIR"),
    ],
)
def test_a_mistake_ends_in_one_line(words, code, says, runs, capsys):
    (runs / "empty").mkdir()
    assert main(["report", *words]) == code
    err = capsys.readouterr().err
    assert err.startswith(f"st3 report: error: {says}")
    assert err.count("\n") == 1


def test_the_page_of_a_sweep_lies_in_the_folder_that_all_its_runs_share(runs):
    paths = [runs / "runs" / "s0", runs / "runs" / "deep" / "s1"]
    assert str(common_folder([path.relative_to(runs) for path in paths])) == "runs"
    assert str(common_folder([paths[0], runs / "s9"])) == "."


def test_unfinished_runs_alone_are_a_report_too(tmp_path, capsys):
    found_run(tmp_path / "a", finished=False)
    assert main(["report", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith(f"Not finished, and not counted: {tmp_path / 'a'}.\n")
