"""Odd environments, as `scripts/reliability/environments.py` has more of them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from st3.door import open_door
from st3.errors import UserError

ROOT = Path(__file__).parents[1]
TRAIN = (
    f"{sys.executable} -m st3.train dataset=fake dataset.image_size=8 dataset.train_images=64 dataset.test_images=32 "
    "dataset.classes=7 batch_size=32 epochs=1 device=cpu precision=fp32 run_dir=run"
)


def told(script: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | variables
    return subprocess.run(["bash", "-c", script], cwd=folder, env=environment, capture_output=True, check=False)


@pytest.mark.slow
def test_a_run_with_ascii_and_without_stderr_comes_to_its_end(tmp_path):
    done = told(f"{TRAIN} 2>&-", tmp_path, PYTHONIOENCODING="ascii", PYTHONUTF8="0", MPLBACKEND="nonsense")
    assert done.returncode == 0
    assert b"3x8x8 input" in done.stdout
    assert done.stdout.isascii()
    assert (tmp_path / "run" / "model.safetensors").exists()


@pytest.mark.slow
def test_what_cannot_work_says_so_in_one_line(tmp_path):
    done = told(f"mkdir gone; cd gone; rmdir ../gone; {TRAIN}", tmp_path)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"st3-train: error: the working directory is no longer there: change to one that is\n"
    done = told(f"{TRAIN} method=nothing", tmp_path, HYDRA_FULL_ERROR="0")
    assert (done.returncode, done.stderr.count(b"\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


def test_no_file_takes_the_place_of_a_stream_that_is_closed(tmp_path):
    script = "import os; from st3.door import open_door; open_door(); print('lost'); print(os.open('new', os.O_CREAT))"
    done = told(f"{sys.executable} -c \"{script}; os._exit(os.open('new', 0))\" <&- >&- 2>&-", tmp_path)
    assert done.returncode > 2
    assert (tmp_path / "new").read_bytes() == b""


def test_a_working_directory_that_is_gone_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: (_ for _ in ()).throw(FileNotFoundError()))
    with pytest.raises(UserError, match="working directory"):
        open_door()


def test_signs_that_a_terminal_does_not_have_are_spelled_out():
    open_door()
    assert "3×8 → σ … 漢 ±1".encode("ascii", "plain") == b"3x8 -> sigma ... ? +-1"
    assert "3×8 ±1".encode("latin-1", "plain") == "3×8 ±1".encode("latin-1")
