"""Worker processes that die, stop or hang, and signals that reach all processes of a run."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import FOLDER, build, epoch

import st3
from st3.data import files, workers
from st3.data.check import check_folder
from st3.data.files import ImageFiles
from st3.data.views import WholeView
from st3.data.workers import Batches, reading
from st3.errors import DataError


@pytest.fixture(autouse=True)
def no_worker_of_another_test():
    for each in multiprocessing.active_children():
        each.kill()
        each.join()


@pytest.fixture
def impatient(monkeypatch):
    """Half a second in place of 45."""
    monkeypatch.setattr(workers, "TICK", 0.1)
    monkeypatch.setattr(workers, "PATIENCE", 5)


def message_of(action) -> str:
    with pytest.raises(DataError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def all_end(processes, seconds=15) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if not any(Path(f"/proc/{each}").exists() for each in processes):
            return True
        time.sleep(0.05)
    return False


def reads(monkeypatch, name, action):
    """Make the workers that are started from now on do `action` when they read the file called `name`."""
    read_image = files.read_image

    def read(path, mode):
        with reading(path):
            if Path(path).name == name:
                action()
        return read_image(path, mode)

    monkeypatch.setattr(files, "read_image", read)


def loader(tree, **options):
    return build(**FOLDER | {"root": str(tree), "workers": 2, "batch_size": 2} | options)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGBUS])
def test_a_worker_that_was_killed_is_one_line(tree, number):
    train = loader(tree).train
    batches = train.epoch(0)
    next(batches)
    first, _ = sorted(multiprocessing.active_children(), key=lambda each: each.pid)
    os.kill(first.pid, number)
    says = message_of(lambda: list(batches))
    assert says.startswith(f"a data loader worker (process {first.pid}) was killed ({number.name})")
    assert ("memory" in says) == (number != signal.SIGSEGV)
    assert not multiprocessing.active_children()
    assert len(list(train.epoch(0))) == 6  # with new workers


def test_a_file_that_kills_its_reader_is_named(tree, monkeypatch):
    data = loader(tree)
    reads(monkeypatch, "2.jpg", lambda: os.kill(os.getpid(), signal.SIGKILL))
    says = message_of(lambda: list(data.test.epoch(0)))
    assert f" was killed (SIGKILL) while it read {tree}/test/" in says


def test_a_worker_that_ends_by_itself_is_one_line(tree, monkeypatch):
    data = loader(tree)
    reads(monkeypatch, "2.jpg", lambda: os._exit(7))
    assert " ended by itself (exit code 7) while it read " in message_of(lambda: list(data.test.epoch(0)))


def test_a_death_does_not_interrupt_what_the_main_thread_does(tree):
    batches = loader(tree).train.epoch(0)
    next(batches)
    for each in multiprocessing.active_children():
        each.kill()
    time.sleep(0.2)  # PyTorch's handler would raise here
    assert "SIGKILL" in message_of(lambda: list(batches))


@pytest.mark.parametrize("when", ["in the midst of an epoch", "between epochs"])
def test_a_stopped_worker_ends_the_epoch(tree, impatient, when):
    train = loader(tree).train
    batches = train.epoch(0)
    next(batches)
    if when == "between epochs":
        list(batches)
        batches = train.epoch(1)
    stopped = multiprocessing.active_children()[0]
    os.kill(stopped.pid, signal.SIGSTOP)
    begin = time.monotonic()
    says = message_of(lambda: list(batches))
    assert "process" in says
    assert str(stopped.pid) in says
    assert time.monotonic() - begin < 12
    assert not multiprocessing.active_children()
    assert len(list(train.epoch(1))) == 6


@pytest.mark.parametrize("decoded", ["streamed", "once", "check"])
def test_a_disk_that_does_not_answer_is_named_by_its_file(tree, impatient, monkeypatch, decoded):
    monkeypatch.setattr(workers, "TICK", 0.5)
    data = loader(tree) if decoded == "streamed" else None
    if decoded == "check":
        from st3.data import check

        examine = check.examine
        monkeypatch.setattr(check, "examine", lambda root, file: hang(file[0]) or examine(root, file))
        action = lambda: check_folder(tree, 2)  # noqa: E731
    else:
        reads(monkeypatch, "2.jpg", lambda: time.sleep(1000))
        action = lambda: list((data or loader(tree, augment="none")).test.epoch(0))  # noqa: E731
    begin = time.monotonic()
    says = message_of(action)
    assert "a data loader worker (process " in says
    assert f" has been reading {tree}/" in says
    assert "2.jpg for 2 s: " in says
    assert time.monotonic() - begin < 15
    assert not multiprocessing.active_children()


def hang(path):
    if path.endswith("2.jpg"):
        with reading(path):
            time.sleep(1000)


def test_a_slow_batch_is_no_reason_to_end_as_long_as_its_files_come(tree, impatient, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 10)
    data = loader(tree, eval_batch_size=6)
    read_image = files.read_image

    def slow(path, mode):
        time.sleep(0.3)
        return read_image(path, mode)

    monkeypatch.setattr(files, "read_image", slow)
    assert len(list(data.test.epoch(0))) == 1  # after 1.8 s, longer than a file may take


def test_a_slow_consumer_is_not_taken_for_a_slow_disk(tree, impatient):
    for _ in loader(tree).train.epoch(0):
        time.sleep(1)


SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", SIGNALS)
def test_workers_do_not_hear_signals_that_are_meant_for_the_main_process(tree, number):
    expected = epoch(loader(tree, workers=0).train)
    train = loader(tree).train
    batches = train.epoch(0)
    got = [next(batches)]
    processes = multiprocessing.active_children()
    for each in processes:
        os.kill(each.pid, number)
    got += batches
    assert all(each.is_alive() for each in processes)
    assert torch.equal(torch.cat([images for images, _ in got]), expected[0])
    del batches, train  # and yet they end
    assert all_end([each.pid for each in processes])


def test_signals_of_the_main_process_are_as_they_were(tree):
    def state():
        return [signal.getsignal(number) for number in [*SIGNALS, signal.SIGCHLD]], signal.pthread_sigmask(0, [])

    before = state()
    next(loader(tree).train.epoch(0))
    assert state() == before


MAIN = """import sys, multiprocessing
sys.path.insert(0, sys.argv[1])
from data_cases import FOLDER, build
train = build(**FOLDER | {"root": sys.argv[2], "workers": 2, "batch_size": 2}).train
batches = train.epoch(0)
next(batches)
print(*(each.pid for each in multiprocessing.active_children()), flush=True)
input()
"""


@pytest.mark.parametrize(("end", "stopped"), [("killed", False), ("exits", False), ("exits", True)])
def test_workers_end_with_the_main_process(tree, end, stopped):
    """A worker that is stopped when its parent is killed can do nothing about it."""
    main = subprocess.Popen(
        [sys.executable, "-c", MAIN, str(Path(__file__).parent), str(tree)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(st3.__file__).parents[1],
    )  # fmt: skip
    processes = [int(word) for word in main.stdout.readline().split()]
    assert len(processes) == 2
    if stopped:
        os.kill(processes[0], signal.SIGSTOP)
    if end == "killed":
        main.kill()
    else:
        main.stdin.write("\n")
        main.stdin.close()
    main.wait(timeout=10)
    assert all_end(processes)


def test_a_run_that_was_stopped_as_a_whole_goes_on(tree, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 2)
    code = f"from st3.data import workers; workers.PATIENCE = 2\n{MAIN}print(len(list(batches)))\n"
    main = subprocess.Popen(
        [sys.executable, "-c", code, str(Path(__file__).parent), str(tree)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(st3.__file__).parents[1],
        start_new_session=True,
    )  # fmt: skip
    main.stdout.readline()
    os.killpg(main.pid, signal.SIGSTOP)
    main.stdin.write("\n")
    main.stdin.flush()
    time.sleep(4)
    os.killpg(main.pid, signal.SIGCONT)
    assert main.communicate(timeout=20)[0] == "5\n"


def test_a_mark_costs_next_to_nothing(tree):
    paths = np.array([str(path) for path in sorted((tree / "train").rglob("*.jpg"))], object)
    batches = Batches(ImageFiles(paths, torch.arange(12), WholeView(8), 3, 0), [(0, torch.arange(12))], workers=1)
    assert len(list(batches)) == 1
    assert [mark.changes for mark in batches.marks] == [24]
    assert [mark.path for mark in batches.marks] == [b""]
