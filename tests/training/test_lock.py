"""One process at a run: who has it, and what becomes of it when that process ends."""

import json
import multiprocessing
import os
import socket
import subprocess
import sys

import pytest

from st3.errors import DamagedError, InUseError
from st3.training.lock import Lock

HOLD = (
    "import sys, time; from pathlib import Path; from st3.training.lock import Lock\n"
    "lock = Lock.acquire(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that has the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / ".lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_it_is_had_once_and_names_who_has_it(tmp_path, holder):
    path, here = tmp_path / ".lock", socket.gethostname()
    for _ in range(2):
        with pytest.raises(InUseError, match=rf"{tmp_path} is in use by process {holder.pid} on {here}: wait"):
            Lock.acquire(path)
    assert json.loads(path.read_text()) == {"host": here, "pid": holder.pid}


def test_that_of_a_process_that_was_killed_is_taken_over(tmp_path, holder):
    holder.kill()
    holder.wait()
    lock = Lock.acquire(tmp_path / ".lock")
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    lock.release()
    assert not list(tmp_path.iterdir())


def test_a_forked_process_does_not_keep_it(tmp_path):
    """A loader's worker, which lives for some seconds after its parent was killed."""
    lock = Lock.acquire(tmp_path / ".lock")
    worker = multiprocessing.get_context("fork").Process(target=lambda: __import__("time").sleep(60), daemon=True)
    worker.start()
    lock._file.close()  # as when this process dies
    check = [sys.executable, "-c", HOLD.replace("time.sleep(60)", "pass"), str(tmp_path / ".lock")]
    assert subprocess.run(check, capture_output=True, text=True).stdout == "held\n"
    worker.kill()
    worker.join()


@pytest.mark.parametrize("content", ["", "{", "7", '{"host": 5}', "\0" * 5000])
def test_what_cannot_be_read_and_nobody_holds_is_taken_over(tmp_path, content):
    (tmp_path / ".lock").write_text(content)
    Lock.acquire(tmp_path / ".lock").release()
    assert not list(tmp_path.iterdir())


def test_that_of_another_host_is_left_alone(tmp_path):
    path, content = tmp_path / ".lock", '{"host": "elsewhere", "pid": 1}'
    path.write_text(content)
    with pytest.raises(InUseError, match=r"is in use by process 1 on elsewhere: wait for it, or delete .*\.lock if"):
        Lock.acquire(path)
    assert path.read_text() == content


@pytest.mark.parametrize("kind", ["a link to another file", "a link to nothing", "FIFO", "folder"])
def test_what_is_no_lock_is_neither_waited_for_nor_written_to(tmp_path, kind):
    path, other = tmp_path / ".lock", tmp_path / "other"
    other.write_text("mine")
    if kind == "FIFO":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(other if "another" in kind else tmp_path / "nothing")
    with pytest.raises(DamagedError, match=r"\.lock is not the lock of a run: delete it"):
        Lock.acquire(path)
    assert other.read_text() == "mine"
    assert not (tmp_path / "nothing").exists()
