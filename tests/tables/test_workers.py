"""The processes of a table: locks, and runs that are started, skipped, broken, left to others or stopped.

A stub stands for the training: it leaves behind what a run directory holds.
"""

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from table_cases import RUNS, small_rows, small_tasks, starts

from st3.tables import workers
from st3.tables.plan import plan
from st3.tables.workers import run_all, stoppable

# Runs -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def tasks(stub, here):
    (here / "out").mkdir()
    return small_tasks((0,))


def test_what_is_finished_is_not_run_again(tasks, stub, here):
    words: list[str] = []
    first = run_all(tasks[:1], 1, words.append)
    assert (first.broken, first.held) == ([], [])
    assert words[0] == "[1/1] Dense, seed 0: started, see out/dense-0-s0.log"
    assert words[1].endswith(" s: top-1 50.00 %, sparsity 80.00%, 5.50 M MACs")
    words.clear()
    run_all(tasks, 3, words.append)
    assert "[1/3] Dense, seed 0: finished before: top-1 50.00 %, sparsity 80.00%, 5.50 M MACs" in words
    assert starts(here) == RUNS
    assert tasks[0].log.read_text() == f"$ {tasks[0].command}\n"


def test_jobs_run_at_the_same_time(tasks, stub, here):
    (stub / "together").write_text("3")
    assert run_all(tasks, 3, lambda _: None).broken == []
    assert starts(here) == RUNS


def test_a_broken_run_keeps_its_last_word_and_is_tried_again_and_nothing_else_is(tasks, stub, here):
    fails = stub / "linear-80-s0.fails"
    fails.write_text("dataset.root=x does not exist")
    outcome = run_all(tasks, 3, lambda _: None)
    assert [(task.name, error) for task, error in outcome.broken] == [
        ("linear, 80 %, seed 0", "dataset.root=x does not exist")
    ]
    fails.unlink()
    assert run_all(tasks, 3, lambda _: None).broken == []
    assert starts(here) == sorted([*RUNS, "linear-80-s0"])
    assert tasks[2].log.read_text().count("$ python -m st3.train ") == 2


def test_another_runs_folder_is_refused_and_left_as_it_is(tasks, stub, here):
    run_all(tasks[:1], 1, lambda _: None)
    before = {path: path.stat().st_mtime_ns for path in here.glob("out/*/*")}
    outcome = run_all(plan(small_rows()[:1], ["epochs=1"], [0], Path("out")), 1, lambda _: None)
    [(_, error)] = outcome.broken
    assert error.startswith("run_dir=out/dense-0-s0 holds a run with epochs=2, not 1")
    assert before == {path: path.stat().st_mtime_ns for path in here.glob("out/*/*")}
    assert starts(here) == ["dense-0-s0"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("", "ended with code 0 and without a word"),
        ("raise FileNotFoundError('x')", "FileNotFoundError: x"),
        ("import os; print('so far', flush=True); os.kill(os.getpid(), 9)", "ended by SIGKILL after: so far"),
    ],
)
def test_what_ends_without_a_result_is_broken(code, says, tasks, stub):
    (stub / "stub.py").write_text(code)
    assert [error for _, error in run_all(tasks[:1], 1, lambda _: None).broken] == [says]


def test_an_interruption_lets_the_runs_end(tasks, stub, here, monkeypatch, capsys):
    (stub / "stub.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\n"
        "    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    print('told, not killed')\n"
    )
    with pytest.raises(KeyboardInterrupt), stoppable():
        run_all(tasks[:1], 1, lambda _: None)
    assert capsys.readouterr().out == "\ninterrupted; the same command continues\n"
    assert tasks[0].log.read_text().endswith("told, not killed\n")

    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    (stub / "stub.py").write_text(
        "import os, signal, time\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "os.kill(os.getppid(), signal.SIGTERM)\n"
        "time.sleep(60)\n"
    )
    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), stoppable():
        run_all(tasks[:1], 1, lambda _: None)
    assert time.monotonic() - begin < 30
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


# Runs of others -------------------------------------------------------------------------------------------------------


def test_a_run_that_somebody_works_at_is_left_to_them_and_named(tasks, here):
    lock = tasks[1].run_dir / ".lock"
    lock.parent.mkdir()
    lock.write_text('{"host": "elsewhere", "pid": 1}')
    words: list[str] = []
    outcome = run_all(tasks, 3, words.append)
    by = f"out/st-3-80-s0 is in use by process 1 on elsewhere: wait for it, or delete {lock} if that is over"
    assert [(task.name, who) for task, who in outcome.held] == [("ST-3, 80 %, seed 0", by)]
    assert f"[2/3] ST-3, 80 %, seed 0: left, as {by}" in words
    assert lock.read_text() == '{"host": "elsewhere", "pid": 1}'
    assert starts(here) == ["dense-0-s0", "linear-80-s0"]


def test_a_lock_that_is_none_stops_its_own_run_and_no_other(tasks, here):
    (tasks[1].run_dir / ".lock").mkdir(parents=True)
    outcome = run_all(tasks, 3, lambda line: None)
    assert [(task.name, why) for task, why, *_ in outcome.broken] == [
        ("ST-3, 80 %, seed 0", "out/st-3-80-s0/.lock is not the lock of a run: delete it")
    ]
    assert starts(here) == ["dense-0-s0", "linear-80-s0"]


def test_a_run_that_somebody_has_begun_in_the_same_moment_is_left_to_them(tasks, stub):
    (stub / "stub.py").write_text("import sys; print('st3-train: error: out/x is in use by process 5'); sys.exit(7)")
    outcome = run_all(tasks[:1], 1, lambda line: None)
    assert (outcome.broken, [by for _, by in outcome.held]) == ([], ["out/x is in use by process 5"])


@pytest.mark.slow
def test_two_processes_share_a_table(tasks, stub, here):
    (stub / "seconds").write_text("0.2")
    context = multiprocessing.get_context("fork")  # they need not import PyTorch again
    together = context.Barrier(2)

    def work(name):
        together.wait(60)
        with open(name, "w") as file:
            outcome = run_all(small_tasks((0, 1, 2)), 1, lambda line: print(line, file=file, flush=True))
        os._exit(bool(outcome.broken))

    both = [context.Process(target=work, args=(name,)) for name in ("one", "two")]
    for process in both:
        process.start()
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert starts(here) == sorted(name[:-1] + seed for name in RUNS for seed in "012")  # each once
    counts = [(here / name).read_text().count(": started, see ") for name in ("one", "two")]
    assert sum(counts) >= 9  # of two that begin a run in the same moment, one ends again
    assert min(counts) >= 1, "one did everything: they were not at work at the same time"
