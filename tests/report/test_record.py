"""A record of runs: what goes into it comes out of it, damage is named, and a report from it is that from the runs."""

import csv
import dataclasses
import multiprocessing
import re
from pathlib import Path

import pytest
from report_cases import make_run, make_table, series

from st3.errors import DamagedError, UserError
from st3.report.formats import to_block, to_csv, to_latex, to_markdown
from st3.report.record import Line, Outcome, add_to_record, read_record
from st3.report.results import read_results
from st3.report.table_report import write_report

OUTCOME = Outcome(
    top1=71.3, top5=1 / 3, val_top1=None, sparsity=0.9799968958789097, zeros=90, prunable=100, removed=0.9, macs=5,
    macs_dense=10, epochs=4, steps=8, seconds=36.25, model="resnet20", dataset="fake", layers=2,
    dense_layers=("conv1",), changes=(), warnings=(), device="a GPU", cpu_threads=None, precision="bf16", st3="0.1.0",
    torch="2", python="3.11", git=None, date="2026-11-24",
)  # fmt: skip


def line(row="st-3-90", seed=0, settings="0123456789ab", **changes) -> Line:
    return Line(row, seed, settings, dataclasses.replace(OUTCOME, **changes))


# The file -------------------------------------------------------------------------------------------------------------


AWKWARD = [
    "", "=1+2", "'=1", "''=1", "'", "+", "-x", "@sum", 'a "quote", and ‡', "it's", "a;b|c", "a\\b", "  ", "-80", "1",
]  # fmt: skip


@pytest.mark.parametrize("text", AWKWARD)
def test_whatever_is_written_is_read_and_begins_no_formula(text, tmp_path):
    path = tmp_path / "record.csv"
    written = line(text, model=text, warnings=(text, "second"), changes=(text,), dense_layers=())
    add_to_record(path, [written], [])
    assert read_record(path) == {(text, 0): written}
    with open(path, newline="", encoding="utf-8") as file:
        cells = list(csv.reader(file))[1]
    assert [cell for cell in cells if cell[:1] in {"=", "+", "-", "@"}] == []


def test_numbers_stay_numbers_also_negative_ones(tmp_path):
    path = tmp_path / "record.csv"
    add_to_record(path, [line(top1=-0.5)], [])
    with open(path, newline="", encoding="utf-8") as file:
        [cells] = csv.DictReader(file)
    assert (cells["top1"], cells["sparsity"], cells["zeros"]) == ("-0.5", "0.9799968958789097", "90")


def test_lines_stand_in_the_order_of_the_table_and_of_the_seeds_and_unknown_rows_last(tmp_path):
    path = tmp_path / "new" / "record.csv"
    for row, seed in (("b", 10), ("gone", 0), ("a", 2), ("b", 9), ("a", 1)):
        add_to_record(path, [line(row, seed)], ["b", "a"])
    text = path.read_text()
    found = [each.split(",")[:2] for each in text.splitlines()[1:]]
    assert found == [["b", "9"], ["b", "10"], ["a", "1"], ["a", "2"], ["gone", "0"]]
    add_to_record(path, [line("a", 2, top1=99.0)], ["b", "a"])
    changed = set(path.read_text().splitlines()) - set(text.splitlines())
    assert changed == {text.splitlines()[4].replace("71.3", "99.0")}


def test_nothing_new_leaves_the_file_alone(tmp_path):
    path = tmp_path / "record.csv"
    add_to_record(path, [], [])
    assert not path.exists()
    add_to_record(path, [line()], [])
    before = path.stat()
    add_to_record(path, [line()], [])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [path]  # no lock and no partial file beside what is committed


def test_processes_that_write_at_once_lose_no_line(tmp_path):
    context = multiprocessing.get_context("fork")
    together = context.Barrier(4)

    def work(seed):
        together.wait(60)
        for row in "abcde":
            add_to_record(tmp_path / "record.csv", [line(row, seed)], list("abcde"))

    processes = [context.Process(target=work, args=(seed,)) for seed in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert list(read_record(tmp_path / "record.csv")) == [(row, seed) for row in "abcde" for seed in range(4)]


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("row,seed,", "row,", "line 1: its columns lack seed"),
        ("row,seed,", "row,seed,more,", "line 1: its columns are not those of a record"),
        ("71.3", "much", "line 2: top1 is much, which is no number"),
        ("71.3", "nan", "line 2: top1 is nan, which is no number"),
        ("71.3", "inf", "line 2: top1 is inf, which is no number"),
        ("71.3", "171.3", "line 2: top1 is 171.3, which cannot be"),
        ("0.9799968958789097", "1e300", "line 2: sparsity is 1e300, which cannot be"),
        (",90,", f",{10**400},", "line 2: zeros is 1000000000000000000000000000000000000000, which cannot be"),
        (",90,", f",{'9' * 5000},", "line 2: zeros is 9999999999999999999999999999999999999999, which is no number"),
        ("resnet20", "resnet20\0", "it holds NUL bytes"),
        ("resnet20", "x" * 200_000, "field larger than field limit"),
        ("71.3", "", "line 2: top1 is empty, which is no number"),
        (",4,8,", ",4.5,8,", "line 2: epochs is 4.5, which is no number"),
        ("resnet20,", "", "line 2: 28 cells, not 29"),
        ("st-3-90,1,", "st-3-90,0,", "line 3: st-3-90, seed 0, a second time"),
        ("st-3-90,1,", "<<<<<<< ours\nst-3-90,1,", "line 3: 1 cells, not 29"),
        ("st-3-90,1,", "\nst-3-90,1,", "line 3: 0 cells, not 29"),
        ("conv1", "'conv1", "line 2: dense_layers: No closing quotation"),
        ("2026-11-24\n", '"2026\n', "unexpected end of data"),
    ],
)
def test_damage_is_refused_in_one_line_and_nothing_is_written(old, new, says, tmp_path):
    path = tmp_path / "record.csv"
    add_to_record(path, [line(), line(seed=1)], [])
    path.write_text(path.read_text().replace(old, new, 1))
    before = path.read_bytes()
    for use in (lambda: read_record(path), lambda: add_to_record(path, [line(seed=2)], [])):
        with pytest.raises(DamagedError, match=f"--record {re.escape(str(path))}, line ") as raised:
            use()
        assert says in str(raised.value)
        assert "\n" not in str(raised.value)
    assert path.read_bytes() == before


def test_what_is_no_file_or_no_text_is_refused(tmp_path):
    with pytest.raises(UserError, match="--record: cannot read "):
        read_record(tmp_path)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"binary\.csv, line "):
        read_record(tmp_path / "binary.csv")
    with pytest.raises(UserError, match=r"cannot be (read|written)"):
        add_to_record(tmp_path / "binary.csv" / "record.csv", [line()], [])


def test_an_endless_record_is_not_read_to_its_end():
    with pytest.raises(UserError, match="/dev/zero: it is no file"):
        read_record(Path("/dev/zero"))


def test_a_file_that_is_only_just_made_holds_nothing_yet(tmp_path):
    (tmp_path / "record.csv").touch()
    assert read_record(tmp_path / "record.csv") == {}


# The report -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def table():
    return make_table(
        series("Dense", (0.0, (77.1, 40)), method="dense"),
        series("ST-3", (0.8, (76.0, 10)), (0.9, (75.0, 5.5)), note="Its own note."),
        series("GMP", (0.9, (70.0, None)), method="gmp"),
        series("RigL", (0.95, None)),
    )


@pytest.fixture
def runs(table, tmp_path):
    """Three seeds of two rows at 90 %, a run that misses its target, one that aims at MACs; several days, devices."""
    dense, at_80, at_90, gmp, _ = table.rows
    for seed, top1 in ((0, 74.0), (2, 75.1), (10, 77.3)):
        make_run(tmp_path / "out", at_90, seed, top1=top1, warnings=["the masks change only 2 times; 'train' longer"])
        make_run(tmp_path / "out", gmp, seed, top1=top1 - 1 / 3, macs=5_500_001 + seed)
    make_run(tmp_path / "out", at_80, 0, off=0.01, typed=["method=st3", "device='cuda:1'"], environment={"cuda": "13"})
    make_run(tmp_path / "out", at_80, 1, target="flops", environment={"st3": "0.2", "date": "2026-11-22"})
    make_run(tmp_path / "out", dense, 0, top1=78.0)
    return tmp_path / "out"


def recorded(table, runs, path, keep=lambda run: True):
    """The lines of a record of these runs, as it is read again."""
    results = read_results(table, runs)
    add_to_record(path, [line_of(r, run) for r in results.rows for run in r.runs if keep(run)], [])
    return read_record(path).values()


def line_of(result, run):
    return Line(result.row.slug, run.seed, "", run.outcome)


def without_links(text):
    return re.sub(r"\[(s\d+)\]\([^)]*\)", r"\1", text)


def without_folders(text):
    return [{**row, "run_dirs": ""} for row in csv.DictReader(text.splitlines())]


def test_a_report_from_a_record_alone_says_what_that_from_run_directories_says(table, runs, tmp_path):
    ours = read_results(table, runs)
    theirs = read_results(table, tmp_path / "empty", recorded(table, runs, tmp_path / "record.csv"))
    assert len(theirs.runs) == 9
    assert to_markdown(theirs, runs) == without_links(to_markdown(ours, runs)) != to_markdown(ours, runs)
    assert without_folders(to_csv(theirs, runs)) == without_folders(to_csv(ours, runs))
    assert to_latex(theirs) == to_latex(ours)
    assert to_block(theirs, "mine") == to_block(ours, "mine")


def test_a_run_directory_wins_over_a_line_and_one_that_is_not_finished_does_not(table, runs, tmp_path):
    at_90 = table.rows[2]
    lines = recorded(table, runs, tmp_path / "record.csv")
    make_run(runs, at_90, 0, top1=50.0)
    make_run(runs, at_90, 2, top1=50.0, finished=False)
    results = read_results(table, runs, lines)
    [found] = [result for result in results.rows if result.row == at_90]
    assert [(run.seed, run.top1, run.directory is None) for run in found.runs] == [
        (0, 50.0, False), (2, 75.1, True), (10, 77.3, False)
    ]  # fmt: skip
    assert results.unfinished == ()


def test_the_page_shows_what_there_is_of_each_run(table, runs, tmp_path):
    lines = recorded(table, runs, tmp_path / "record.csv", keep=lambda run: run.seed != 10)
    page, _ = write_report(table, tmp_path / "mixed", lines)
    text = page.read_text(encoding="utf-8")
    assert 'data-chart="layer_sparsity"' not in text  # nor any other that needs files
    assert 'data-chart="training_curves"' not in text
    assert 'data-chart="run-' not in text
    assert text.count('<details id="run-') == 7
    assert re.findall(r'href="(\.\.[^"]*)"', text) == []
    make_run(tmp_path / "mixed", table.rows[2], 10)
    text = write_report(table, tmp_path / "mixed", lines)[0].read_text(encoding="utf-8")
    assert 'data-chart="layer_sparsity"' in text
    assert 'data-chart="training_curves"' in text
    assert {name.rpartition("-")[0] for name in re.findall(r'data-chart="(run-[^"]*)"', text)} == {"run-5"}
    assert set(re.findall(r'href="(\.\.[^"]*)"', text)) == {"../st-3-90-s10/"}
    links = set(re.findall(r'href="#(run-\d+)"', text))
    assert links == set(re.findall(r'<details id="(run-\d+)"', text))
    assert len(links) == 8


def test_ranking_by_held_out_images_needs_them_on_record_too(table, runs, tmp_path):
    lines = recorded(table, runs, tmp_path / "record.csv")
    by_validation = dataclasses.replace(table, accuracy="validation")
    with pytest.raises(UserError, match="dense-0, seed 0, on record holds no images out"):
        read_results(by_validation, tmp_path / "empty", lines)
    held_out = [dataclasses.replace(each, outcome=dataclasses.replace(each.outcome, val_top1=60.0)) for each in lines]
    assert {run.top1 for run in read_results(by_validation, tmp_path / "empty", held_out).runs} == {60.0}
