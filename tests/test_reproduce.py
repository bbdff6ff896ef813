"""Tables as commands: planned, run, skipped, continued, broken, shared between processes, interrupted.

Where only the handling of runs matters, a stub stands for the training: it writes what a run directory holds.
"""

import json
import multiprocessing
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

import st3.reproduce as reproduce
from st3.report import table_report
from st3.report.table import TABLES, load_table
from st3.reproduce import Held, Lock, main, plan, training_macs

NAMES = sorted(path.stem for path in TABLES.glob("*.yaml"))
SMALL = """
title: Small
overrides: [dataset=fake, dataset.image_size=8, dataset.train_images=96, dataset.test_images=40, dataset.classes=7,
            batch_size=32, epochs=2]
sparsities: [0.8]
series:
  - {label: Dense, method: dense, points: {0: {}}}
  - {label: ST-3, method: st3}
  - {label: linear, method: st3, overrides: [schedule.power=1]}
  - {label: Unheard-of, method: unheard_of, source: a paper, points: {0.9: {top1: 50}}}
"""
RUNS = ["dense-0-s0", "linear-80-s0", "st-3-80-s0"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


# Plans ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_every_row_of_every_table_can_be_run(name, here, capsys):
    assert main([name, "--dry-run"]) == 0
    out = capsys.readouterr().out
    commands = [shlex.split(line) for line in out.splitlines() if not line.startswith("#")]
    rows = [row for row in load_table(TABLES / f"{name}.yaml").rows if row.method in reproduce.METHODS]
    assert [command[:3] for command in commands] == [["python", "-m", "st3.train"]] * len(rows)
    assert [tuple(command[3:-2]) for command in commands] == [row.overrides for row in rows]
    assert [command[-1] for command in commands] == [f"run_dir=outputs/tables/{name}/{row.slug}-s0" for row in rows]
    assert {command[-2] for command in commands} == {"seed=0"}
    assert list(here.iterdir()) == [here / "small.yaml"]


def test_the_cost_is_three_passes_of_all_images(here, capsys):
    series = "series: [{label: Dense, method: dense, points: {0: {}}}]"
    (here / "one.yaml").write_text(f"title: One\noverrides: [recipe=imagenet_resnet50]\n{series}\n")
    assert main(["one.yaml", "--dry-run", "--seeds", "0,3", "--images-per-second", "1000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    exa = 3 * 4_089_184_256 * 1_281_167 * 100 / 1e18
    hours = 1_281_167 * 100 / 1000 / 3600
    assert lines[2] == f"# Dense, seed 3: {exa:.3g} exaMACs, {hours:.3g} h at 1000 images/s"
    assert lines[-1] == f"# 2 runs: {2 * exa:.3g} exaMACs, {2 * hours:.3g} h at 1000 images/s"
    assert lines[1] != lines[3]  # the seeds


def test_overrides_reach_every_row_and_the_cost(here):
    rows = load_table(here / "small.yaml").rows[:3]
    short, long = (plan(rows, [f"epochs={epochs}"], [0, 1], Path("a b")) for epochs in (2, 6))
    assert [task.config.epochs for task in long] == [6] * 6
    assert [task.config.seed for task in long] == [0, 0, 0, 1, 1, 1]
    assert long[0].overrides[-3:] == ("epochs=6", "seed=0", "run_dir='a b/dense-0-s0'")
    assert training_macs(long[0].config, {}) == 3 * training_macs(short[0].config, {})


def test_a_method_that_st3_does_not_have_is_published_only(here, monkeypatch, capsys):
    monkeypatch.setattr(reproduce, "METHODS", {"st3": None, "dense": None})
    assert main(["resnet50_imagenet", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("# not among the methods of st3, published figures only: st3_sigma, hard_ste, feather, gmp, ")
    assert "optg" not in out  # nothing is expected to run it
    assert "method=st3_sigma" not in out
    assert main(["small.yaml", "--dry-run"]) == 0
    assert "published figures only: unheard_of" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("patterns", "rows"),
    [
        ("*-80", ["st-3-80", "linear-80"]),
        ("linear*,dense-0", ["dense-0", "linear-80"]),  # in the order of the table, not of the patterns
        ("ST-3*", ["st-3-80"]),
        ("*", ["dense-0", "st-3-80", "linear-80"]),
    ],
)
def test_rows_are_chosen_by_shell_patterns(patterns, rows, here, capsys):
    assert main(["small.yaml", "--dry-run", "--rows", patterns, "--seeds", "0,4"]) == 0
    out = capsys.readouterr().out
    runs = [line.partition(" run_dir=outputs/tables/small/")[2] for line in out.splitlines() if line.startswith("py")]
    assert runs == [f"{row}-s{seed}" for seed in (0, 4) for row in rows]
    assert f"# {len(runs)} runs: " in out


@pytest.mark.parametrize(
    ("number", "says"),
    [
        (0, "0 MACs"), (999, "999 MACs"), (1000, "1 kiloMACs"), (27_512_345_678_901, "27.5 teraMACs"),
        (999_499_999_999, "999 gigaMACs"), (999_500_000_001, "1 teraMACs"), (3 * 10**21, "3 zettaMACs"),
        (10**29, "1e+05 yottaMACs"),
    ],
)  # fmt: skip
def test_a_cost_has_a_fitting_prefix(number, says, here, monkeypatch):
    [task] = plan(load_table(here / "small.yaml").rows[:1], [], [0], Path("out"))
    monkeypatch.setattr(reproduce, "training_macs", lambda config, known: number)
    assert reproduce.describe_cost([task], None, {}) == says


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
        ("small.yaml --rows st-4*", "--rows st-4* is none of dense-0, st-3-80, linear-80"),
        ("small.yaml --rows dense*,unheard*", "--rows unheard* is none of dense-0, st-3-80, linear-80"),
        ("small.yaml --rows ,", "--rows  is none of"),
        ("small.yaml --report-only", "outputs/tables/small does not exist: say with --out"),
        ("small.yaml --out small.yaml", "--out small.yaml cannot be created"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(arguments, says, here, capsys):
    assert main(arguments.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith("reproduce: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == [here / "small.yaml"]


@pytest.mark.parametrize("option", ["--seeds=0,0", "--seeds=-1", "--seeds=a", "--jobs=0", "--images-per-second=0"])
def test_an_option_out_of_range_is_refused(option, here, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["small.yaml", option])
    assert stop.value.code == 2
    assert "invalid" in capsys.readouterr().err


# Runs, with a stub for the training -----------------------------------------------------------------------------------

STUB = """
import json, pathlib, shutil, sys, time
settings = dict(override.split("=", 1) for override in sys.argv[1:])
folder, given = pathlib.Path(settings["run_dir"]), pathlib.Path("given")
with open("starts", "a") as file:
    file.write(folder.name + "\\n")
time.sleep(float((given / "seconds").read_text()))
if (given / f"{folder.name}.fails").exists():
    sys.exit("a word before\\nst3-train: error: " + (given / f"{folder.name}.fails").read_text())
folder.mkdir(parents=True, exist_ok=True)
shutil.copy(given / f"{folder.name}.yaml", folder / "config.yaml")
for name in ("metrics.csv", "layers.csv", "environment.yaml", "overrides.yaml", "summary.json"):
    shutil.copy(given / name, folder / name)
"""


@pytest.fixture
def stub(here, monkeypatch):
    """The folder "given", from which the stub takes how long it works, on whom it fails and what it writes."""
    given = here / "given"
    given.mkdir()
    (given / "stub.py").write_text(STUB)
    (given / "seconds").write_text("0")
    for task in plan(load_table(here / "small.yaml").rows[:3], [], [0, 1, 2], Path("out")):
        (given / f"{task.run_dir.name}.yaml").write_text(yaml.safe_dump(asdict(task.config)))
    (given / "metrics.csv").write_text("step,sparsity,test_top1\n3,0.1,\n6,0.8,50\n")
    (given / "layers.csv").write_text("name,pruned,sparsity,macs,macs_dense\nconv,True,0.8,20,100\n")
    (given / "environment.yaml").write_text("{st3: '0', torch: '2', device: cpu, git: null}")
    (given / "overrides.yaml").write_text("[]")
    summary = {"top1": 50.0, "sparsity": 0.8, "target": "weights", "macs": 2e6, "macs_dense": 1e7, "epochs": 2,
               "steps": 6, "seconds": 1.0, "model": "resnet20", "dataset": "fake", "finished": True}  # fmt: skip
    (given / "summary.json").write_text(json.dumps(summary))
    monkeypatch.setattr(reproduce, "TRAIN", (sys.executable, "given/stub.py"))
    monkeypatch.setattr(table_report, "_PLOTS", {})  # they take most of the time, and have their own tests
    return given


def starts(here) -> list[str]:
    return sorted((here / "starts").read_text().split()) if (here / "starts").exists() else []


def test_a_broken_run_is_named_and_tried_again_and_nothing_else_is(stub, here, capsys):
    (stub / "linear-80-s0.fails").write_text("dataset.root=x does not exist")
    command = ["small.yaml", "--out", "out", "--jobs", "3"]
    assert main(command) == 1
    out = capsys.readouterr().out
    assert "broken: linear, 80 %, seed 0: dataset.root=x does not exist (see out/linear-80-s0.log)" in out
    assert "1 of 3 runs are broken; the same command tries them again" in out
    assert "2 runs in 2 of 4 rows; report: out/report/index.html" in out
    assert starts(here) == RUNS
    assert not list(here.glob("out/*-s?.lock"))

    (stub / "linear-80-s0.fails").unlink()
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "[1/3] Dense, seed 0: finished before: top-1 50.00 %" in out
    assert "3 runs in 3 of 4 rows" in out
    assert starts(here) == sorted([*RUNS, "linear-80-s0"])
    log = (here / "out" / "linear-80-s0.log").read_text()
    assert log.count("$ python -m st3.train ") == 2

    # Another seed is another run; other settings are refused, and leave what is there.
    assert main([*command, "--seeds", "0,2"]) == 0
    assert len(starts(here)) == 4 + 3
    before = {path: path.stat().st_mtime_ns for path in here.glob("out/*-s*/*")}
    capsys.readouterr()
    assert main([*command, "epochs=3"]) == 1
    out = capsys.readouterr().out
    assert "broken: Dense, seed 0: run_dir=out/dense-0-s0 holds a run with epochs=2, not 3" in out
    assert before == {path: path.stat().st_mtime_ns for path in here.glob("out/*-s*/*")}
    assert len(starts(here)) == 4 + 3


def test_what_ends_without_a_result_is_broken(stub, here, capsys):
    (stub / "summary.json").write_text((stub / "summary.json").read_text().replace("true", "false"))
    (stub / "layers.csv").unlink()  # a traceback
    assert main(["small.yaml", "--out", "out"]) == 1
    assert "broken: Dense, seed 0: FileNotFoundError: [Errno 2] No such file or directory: 'given/layers.csv'" in (
        capsys.readouterr().out
    )
    (stub / "layers.csv").write_text("name,pruned,sparsity,macs,macs_dense\n")
    assert main(["small.yaml", "--out", "out"]) == 1
    assert "broken: Dense, seed 0: ended with code 0 and without a word" in capsys.readouterr().out


def test_results_of_other_rows_stay_in_the_report(stub, here, capsys):
    assert main(["small.yaml", "--out", "out", "--rows", "dense*"]) == 0
    assert main(["small.yaml", "--out", "out", "--rows", "linear*"]) == 0
    assert "2 runs in 2 of 4 rows" in capsys.readouterr().out
    assert starts(here) == ["dense-0-s0", "linear-80-s0"]


def test_a_report_alone_runs_nothing(stub, here, capsys):
    assert main(["small.yaml", "--out", "out"]) == 0
    page = here / "out" / "report" / "index.html"
    page.unlink()
    (here / "starts").unlink()
    assert main(["small.yaml", "--out", "out", "--report-only"]) == 0
    assert page.exists()
    assert starts(here) == []


def test_two_processes_share_a_table(stub, here):
    (stub / "seconds").write_text("0.2")
    context = multiprocessing.get_context("fork")  # they need not import PyTorch again
    together = context.Barrier(2)

    def work(name):
        with open(name, "w") as file, redirect_stdout(file):
            together.wait(60)
            sys.exit(main(["small.yaml", "--out", "out", "--seeds", "0,1,2"]))

    both = [context.Process(target=work, args=(name,)) for name in ("one", "two")]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert starts(here) == sorted(name[:-1] + seed for name in RUNS for seed in "012")  # each once
    said = [(here / name).read_text() for name in ("one", "two")]
    counts = [text.count(": started, see ") for text in said]
    assert sum(counts) == 9
    assert min(counts) >= 1, "one did everything: they were not at work at the same time"
    assert "9 runs in 3 of 4 rows" in "".join(said)
    assert not list(here.glob("out/*-s?.lock"))


# Locks ----------------------------------------------------------------------------------------------------------------


def dead_process() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_lock_is_had_once_and_names_who_has_it(tmp_path):
    path = tmp_path / "run.lock"
    lock = Lock.acquire(path)
    assert json.loads(path.read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}
    assert Lock.acquire(path) == Held(f"process {os.getpid()} on {socket.gethostname()}")
    lock.release()
    assert not path.exists()
    Lock.acquire(path).release()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text(json.dumps({"host": socket.gethostname(), "pid": dead_process()}))
    lock = Lock.acquire(path)
    assert json.loads(path.read_text())["pid"] == os.getpid()
    assert isinstance(Lock.acquire(path), Held)
    lock.release()


@pytest.mark.parametrize(
    ("content", "by"),
    [
        ('{"host": "elsewhere", "pid": 1}', "process 1 on elsewhere: delete"),
        ("", "says nothing: delete it if nobody works there"),
    ],
)
def test_a_lock_of_which_nothing_is_known_is_left_alone_and_named(content, by, stub, here, capsys):
    path = here / "out" / "st-3-80-s0.lock"
    path.parent.mkdir()
    path.write_text(content)
    assert main(["small.yaml", "--out", "out"]) == 0
    out = capsys.readouterr().out
    assert "left: ST-3, 80 %, seed 0, to " in out
    assert by in out
    assert path.read_text() == content
    assert starts(here) == ["dense-0-s0", "linear-80-s0"]


def test_a_run_whose_command_was_killed_stays_locked_until_its_training_ends(tmp_path):
    path = tmp_path / "run.lock"
    lock = Lock.acquire(path)
    training = subprocess.Popen(["sleep", "60"], pass_fds=[lock.file.fileno()])
    lock.file.close()  # as when this process dies
    assert isinstance(Lock.acquire(path), Held)
    training.kill()
    training.wait()
    Lock.acquire(path).release()


# With real training ---------------------------------------------------------------------------------------------------


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
    assert main(command) == 130
    watcher.join()
    assert "interrupted; the same command continues" in capsys.readouterr().out
    assert not list(here.glob("a b/*-s?.lock"))
    log = here / "a b" / "st-3-80-s0.log"
    assert "interrupted; to continue: st3-train" in log.read_text()  # it was told, not killed
    assert not (run / "model.safetensors").exists()

    assert main(command) == 0
    assert json.loads((run / "summary.json").read_text())["finished"]
    assert f"continuing {run.relative_to(here)} after epoch" in log.read_text()
    page = (here / "a b" / "report" / "index.html").read_text(encoding="utf-8")
    assert "All runs depart from the table&#x27;s own settings: epochs=20, eval_every=20." in page
    assert '<a href="../st-3-80-s0/">s0</a>' in page
