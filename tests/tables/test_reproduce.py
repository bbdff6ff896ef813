"""`st3 reproduce`, with a stub for the training where not the training matters."""

import json
import os
import shlex
import signal
import threading
import time

import pytest
from table_cases import RUNS, SMALL, starts

from st3 import sparsify
from st3.cli import main
from st3.report.table import load_table
from st3.tables.reproduce import PUBLISHED

SLOW = ("resnet50_imagenet", "cifar10_resnet20", "cifar100_wrn34_2", "fashion_mnist_embedded", "mobilenet_v1_imagenet")


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
        ("small.yaml --rows dense*,unheard*", "--rows unheard* is none of dense-0, st-3-80, linear-80"),
        ("small.yaml --report-only", "outputs/tables/small does not exist: say with --out"),
        ("small.yaml --out small.yaml", "--out small.yaml cannot be created"),
        ("small.yaml --seeds 0,0", "argument --seeds: 0,0 must be different numbers from 0 on"),
        ("small.yaml --seeds=-1", "argument --seeds: -1 must be different numbers from 0 on"),
        ("small.yaml --seeds a", "argument --seeds: invalid"),
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


def test_broken_runs_are_named_and_the_others_are_in_the_report(stub, here, capsys):
    (stub / "linear-80-s0.fails").write_text("dataset.root=x does not exist")
    (here / "out").mkdir()
    (here / "out" / "dense-0-s0.lock").write_text('{"host": "elsewhere", "pid": 1}')
    assert reproduce("small.yaml", "--out", "out", "--jobs", "3") == 1
    out = capsys.readouterr().out
    assert "left: Dense, seed 0, to process 1 on elsewhere" in out
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


@pytest.mark.slow
def test_an_interrupted_table_continues_where_it_was(here, capsys):
    table = "\n".join(line for line in SMALL.splitlines() if "Dense" not in line and "linear" not in line)
    (here / "small.yaml").write_text(table)
    command = ["small.yaml", "--out", "a b", "epochs=20", "eval_every=20"]
    run = here / "a b" / "st-3-80-s0"

    def interrupt():
        deadline = time.monotonic() + 60
        while not (run / "last.pt").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    watcher = threading.Thread(target=interrupt)
    watcher.start()
    assert reproduce(*command) == 130
    watcher.join()
    assert "interrupted; the same command continues" in capsys.readouterr().out
    log = here / "a b" / "st-3-80-s0.log"
    assert "interrupted; to continue: st3-train" in log.read_text()  # it was told, not killed
    assert not (run / "model.safetensors").exists()

    assert reproduce(*command) == 0
    assert json.loads((run / "summary.json").read_text())["finished"]
    assert f"continuing {run.relative_to(here)} after epoch" in log.read_text()
    page = (here / "a b" / "report" / "index.html").read_text(encoding="utf-8")
    assert "All runs depart from the table&#x27;s own settings: epochs=20, eval_every=20." in page
    assert '<a href="../st-3-80-s0/">s0</a>' in page
