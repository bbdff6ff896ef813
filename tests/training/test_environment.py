import json
import subprocess
from datetime import UTC, datetime, timedelta

import torch
from training_cases import FP32

from st3.training.distributed import Processes
from st3.training.environment import environment
from st3.training.machine import Machine


def test_it_is_plain_data_about_this_machine():
    found = environment(FP32, "1.2")
    assert found["st3"] == "1.2"
    assert found["torch"] == torch.__version__
    assert (found["cuda"], found["processes"], found["precision"]) == (None, 1, "fp32")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(found["date"])) < timedelta(minutes=1)
    assert environment(Machine(FP32.device, "fp32", Processes(world_size=4)), "1.2")["processes"] == 4
    assert json.loads(json.dumps(found)) == found


def test_the_state_of_the_git_project_is_that_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment(FP32, "0")["git"] is None

    def git(*arguments: str) -> str:
        identity = "-c", "user.name=n", "-c", "user.email=e@x"
        return subprocess.run(["git", *identity, *arguments], capture_output=True, text=True, check=True).stdout.strip()

    git("init")
    git("commit", "--allow-empty", "-m", "first")
    (tmp_path / "new.py").touch()
    assert environment(FP32, "0")["git"] == {"commit": git("rev-parse", "HEAD"), "changed_files": 1}
