"""`st3 reproduce`, with a stub for the training where not the training matters."""

import json
import os
import shlex
import signal
import threading
import time

import pytest
from fake_runs import fake_summary
from table_cases import RUNS, SMALL, starts

from st3 import sparsify
from st3.cli import main
from st3.report.table import load_table
from st3.tables.reproduce import PUBLISHED
from st3.training.run_directory import RunDirectory

SLOW = (
    "resnet50_imagenet", "cifar10_resnet20", "cifar100_wrn34_2", "fashion_mnist_embedded", "mobilenet_v1_imagenet",
    "cifar10_study", "study_embedded", "study_ham", "study_precision",
)  # fmt: skip


def reproduce(*words: str) -> int:
    return main(["reproduce", *words])


@pytest.mark.parametrize("name", ["ablation", *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_every_series_of_every_table_can_be_run(name, here, capsys):
    """One row of those that differ in nothing but the sparsity."""
    rows = [row for row in load_table(PUBLISHED / f"{name}.yaml").rows if row.method in sparsify.METHODS]
    rows = list({tuple(each for each in row.overrides if "sparsity=" not in each): row for row in rows}.values())
    assert reproduce(name, "--dry-run", "--rows", ",".join(row.slug for row in rows)) == 0
    out = capsys.readouterr().out
    commands = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    assert [command[:3] for command in commands] == [["python", "-m", "st3.train"]] * len(rows)
    assert [tuple(command[3:-2]) for command in commands] == [row.overrides for row in rows]
    assert [command[-1] for command in commands] == [f"run_dir=outputs/tables/{name}/{row.slug}-s0" for row in rows]
    assert {command[-2] for command in commands} == {"seed=0"}
    assert f"# {len(rows)} runs: " in out
    assert list(here.iterdir()) == [here / "small.yaml"]


def test_the_tables_above_are_all():
    assert sorted([*SLOW, "ablation"]) == sorted(path.stem for path in PUBLISHED.glob("*.yaml"))


def test_a_method_that_st3_does_not_have_is_published_only(here, capsys):
    assert reproduce("small.yaml", "--dry-run", "--images-per-second", "10", "--rows", "dense*", "--seeds", "0,4") == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == "# not among the methods of st3, published figures only: unheard_of"
    assert lines[0].startswith("# Dense, seed 0: ")
    assert lines[2].endswith(" at 10 images/s")
    assert [line.partition(" run_dir=")[2] for line in lines] == [
        "", "outputs/tables/small/dense-0-s0", "", "outputs/tables/small/dense-0-s4", ""
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("resnet50", "TABLE=resnet50 does not exist: did you mean resnet50_imagenet?"),
        ("nowhere.yaml", "cannot read nowhere.yaml"),
        ("small.yaml epoch=3", "did you mean epochs?"),
        ("small.yaml epochs=0", "epochs=0 must be at least 1"),
        ("small.yaml recipe=cifar", "recipe=cifar does not exist"),
        ("small.yaml seed=1", "seed=1: write --seeds"),
        ("small.yaml run_dir=x", "run_dir=x: write --out"),
        ("small.yaml sparsity=0.5", "sparsity=0.5: write the points of the table"),
        ("small.yaml dry_run=true", "dry_run=true: write --dry-run"),
        ("small.yaml --report-only epochs=3", "--report-only trains nothing and shows all: leave out epochs=3"),
        ("small.yaml --report-only --rows *", "--report-only trains nothing and shows all: leave out --rows"),
        ("small.yaml --dry-run --write small.yaml", "--dry-run writes nothing: leave out --write"),
        ("small.yaml --write nowhere.md", "--write nowhere.md cannot be read"),
        ("small.yaml --write small.yaml", "by the lines <!-- BEGIN st3 reproduce small --> and <!-- END st3 reproduce"),
        ("small.yaml --rows dense*,unheard*", "--rows unheard* is none of dense-0, st-3-80, linear-80"),
        ("small.yaml --report-only", "outputs/tables/small does not exist: say with --out"),
        ("small.yaml --seeds 0,0", "argument --seeds: 0,0 must be different numbers, from the lower to the higher"),
        ("small.yaml --seeds 0..3,2", "argument --seeds: 0..3,2 must be different numbers"),
        ("small.yaml --seeds 4..0", "argument --seeds: 4..0 must be different numbers, from the lower to the higher"),
        (
            "small.yaml --seeds 4..2,1",
            "argument --seeds: 4..2,1 must be different numbers, from the lower to the higher",
        ),
        ("small.yaml --seeds=-1", "argument --seeds: -1 must be numbers from 0 on, as in 0,1,2 or 0..4 or 0..2,7"),
        ("small.yaml --seeds a", "argument --seeds: a must be numbers from 0 on"),
        ("small.yaml --seeds 0..", "argument --seeds: 0.. must be numbers from 0 on"),
        ("small.yaml --seeds 0,,1", "argument --seeds: 0,,1 must be numbers from 0 on"),
        ("small.yaml --jobs 0", "argument --jobs: 0 must be at least 1"),
        ("small.yaml --images-per-second 0", "argument --images-per-second: 0 must be positive"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(arguments, says, here, capsys):
    assert reproduce(*arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("st3 reproduce: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == [here / "small.yaml"]


def test_a_folder_that_cannot_be_made_is_a_matter_of_the_disk(here, capsys):
    assert reproduce("small.yaml", "--out", "small.yaml") == 6
    assert capsys.readouterr().err == (
        "st3 reproduce: error: --out small.yaml cannot be created (File exists): choose another\n"
    )


def test_broken_runs_are_named_and_the_others_are_in_the_report(stub, here, capsys):
    (stub / "linear-80-s0.fails").write_text("dataset.root=x does not exist")
    (here / "out" / "dense-0-s0").mkdir(parents=True)
    (here / "out" / "dense-0-s0" / ".lock").write_text('{"host": "elsewhere", "pid": 1}')
    assert reproduce("small.yaml", "--out", "out", "--jobs", "3") == 1
    out = capsys.readouterr().out
    assert "left: Dense, seed 0, as out/dense-0-s0 is in use by process 1 on elsewhere" in out
    assert "broken: linear, 80 %, seed 0: dataset.root=x does not exist (see out/linear-80-s0.log)" in out
    assert "1 of 3 runs are broken; the same command tries them again" in out
    assert "1 runs in 1 of 4 rows; report: out/report/index.html" in out
    assert starts(here) == ["linear-80-s0", "st-3-80-s0"]


def test_results_of_other_rows_stay_in_the_report(stub, here, capsys):
    assert reproduce("small.yaml", "--out", "out", "--rows", "dense*") == 0
    assert reproduce("--rows", "linear*", "small.yaml", "--out", "out") == 0
    assert "2 runs in 2 of 4 rows; report: out/report/index.html" in capsys.readouterr().out
    assert starts(here) == ["dense-0-s0", "linear-80-s0"]


def test_a_report_alone_runs_nothing(stub, here):
    assert reproduce("small.yaml", "--out", "out") == 0
    page = here / "out" / "report" / "index.html"
    page.unlink()
    assert reproduce("small.yaml", "--out", "out", "--report-only") == 0
    assert page.exists()
    assert starts(here) == RUNS


def test_a_lock_of_the_report_that_is_none_is_told_in_a_line(stub, here, capsys):
    (here / "out").mkdir()
    os.mkfifo(here / "out" / ".report.lock")
    assert reproduce("small.yaml", "--out", "out", "--report-only") == 6
    assert capsys.readouterr().err.startswith("st3 reproduce: error: cannot write out/.report.lock: ")


@pytest.mark.parametrize(
    ("typed", "seeds"), [("0..4", [0, 1, 2, 3, 4]), ("0..2,7", [0, 1, 2, 7]), ("9,3..4", [9, 3, 4]), ("5..5", [5])]
)
def test_seeds_are_typed_as_ranges_with_both_ends(typed, seeds, here, capsys):
    assert reproduce("small.yaml", "--dry-run", "--rows", "dense*", "--seeds", typed) == 0
    commands = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("#")]
    assert [command.rpartition("/dense-0-s")[2] for command in commands] == [str(seed) for seed in seeds]


DOCUMENT = "# By hand\n\n<!-- BEGIN st3 reproduce small -->\n<!-- END st3 reproduce small -->\n\nBy hand, too: 87.00.\n"


def test_a_table_is_written_into_a_text_from_run_directories(stub, here, capsys):
    """The differences of linear from ST-3 are −1.9, −2 and −2.1: 4.303·0.1/√3 = 0.25."""
    top1 = {"dense-0": (90, 90, 90), "st-3-80": (50, 52, 54), "linear-80": (48.1, 50, 51.9)}
    for row, values in top1.items():
        for seed, value in enumerate(values):
            sparsity = 0.0 if row == "dense-0" else 0.8
            given = RunDirectory(stub / f"{row}-s{seed}")
            given.write_summary(fake_summary(epochs=2, top1=value, sparsity=sparsity, seed=seed))
    document = here / "results.md"
    document.write_text(DOCUMENT)
    assert reproduce("small.yaml", "--out", "out", "--seeds", "0..2", "--write", "results.md") == 0
    assert capsys.readouterr().out.endswith("table written into results.md\n")
    before, rest = document.read_text().split("<!-- BEGIN st3 reproduce small -->")
    block, after = rest.split("<!-- END st3 reproduce small -->")
    assert [before, after] == ["# By hand\n\n", "\n\nBy hand, too: 87.00.\n"]
    assert block.startswith("\n\n```bash\nst3 reproduce small.yaml --seeds 0..2 --rows 'dense-0,*-80'\n```\n")
    assert "| ST-3 | 80 | – | **52.00 ± 4.97** | 3 | best |" in block
    assert "| linear | 80 | – | 50.00 ± 4.72 | 3 | −2.00 ± 0.25 |" in block
    assert "ST-3 minus the next row, linear: +2.00 ± 0.25 points, paired over 3 seeds." in block
    assert "9 runs of 2 epochs, resnet20 on fake, seeds 0..2" in block
    assert "depart" not in block

    written = document.read_bytes()
    assert reproduce("small.yaml", "--out", "out", "--report-only", "--write", "results.md") == 0
    assert document.read_bytes() == written


def test_a_document_without_marks_is_refused_before_anything_is_trained(stub, here, capsys):
    document = here / "results.md"
    document.write_text("# By hand\n")
    assert reproduce("small.yaml", "--out", "out", "--write", "results.md") == 2
    assert "results.md: mark once where the table belongs" in capsys.readouterr().err
    assert starts(here) == []
    assert document.read_text() == "# By hand\n"


@pytest.mark.slow
def test_an_interrupted_table_continues_where_it_was(here, capsys):
    table = "\n".join(line for line in SMALL.splitlines() if "Dense" not in line and "linear" not in line)
    (here / "small.yaml").write_text(table)
    command = ["small.yaml", "--out", "a b", "epochs=20", "eval_every=20"]
    run = here / "a b" / "st-3-80-s0"

    def interrupt():
        deadline = time.monotonic() + 60
        while not (run / "checkpoints").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    assert reproduce(*command) == 130
    watcher.join()
    assert "interrupted; the same command continues" in capsys.readouterr().out
    log = here / "a b" / "st-3-80-s0.log"
    assert "stopped by SIGINT; to continue: st3-train" in log.read_text()  # it was told, not killed
    assert not (run / "model.safetensors").exists()

    assert reproduce(*command) == 0
    assert json.loads((run / "summary.json").read_text())["finished"]
    assert f"continuing {run.relative_to(here)} after epoch" in log.read_text()
    page = (here / "a b" / "report" / "index.html").read_text(encoding="utf-8")
    assert "All runs depart from the table&#39;s own settings: epochs=20, eval_every=20." in page
    assert '<a href="../st-3-80-s0/">../st-3-80-s0</a>' in page
