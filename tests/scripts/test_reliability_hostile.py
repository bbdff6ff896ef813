"""Hostile files, as `scripts/reliability/hostile.py` makes them: some of each kind, by the script itself."""

import subprocess
import sys
from pathlib import Path

import pytest

CASES = (
    "config.yaml: aliases", "summary.json: a FIFO", "metrics.csv: a quote", ".lock to a file",
    "checkpoints to a folder", "the older format", "step is infinite", "packed: 2 GB of zeros behind",
    "classes that are HTML", "hydra's settings",
)  # fmt: skip


@pytest.mark.slow
def test_what_is_hostile_ends_in_one_line_and_does_no_harm(tmp_path):
    command = [sys.executable, "-m", "scripts.reliability.hostile", tmp_path, "--only", ",".join(CASES)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    tried = [int(line.split("|")[2]) for line in done.stdout.splitlines() if line.startswith("| ")][1:]
    assert len(tried) == 7
    assert sum(tried) >= len(CASES)
