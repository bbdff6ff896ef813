"""The counts of what the kernels compile to: compiled in a process of its own, because here they are interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton", reason="this PyTorch comes without Triton")
REPOSITORY = Path(__file__).parents[2]
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"


@pytest.mark.slow
@pytest.mark.skipif(not (TOOLS / "cuobjdump").exists(), reason="this Triton comes without NVIDIA's tools")
def test_they_fit_an_h100(tmp_path):
    environment = os.environ | {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, "scripts/kernel_counts.py", "--models", "resnet20"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=True)
    table = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| resnet20")]
    assert [row[1] for row in table] == ["count 0", "count 1", "count 2", "count 3", "project"]
    for _, _, programs, lines, registers, _, spilled, per_weight in table:
        assert 100 < int(programs) < 1000
        assert 100 < int(lines) < 1500
        assert int(registers) <= 64  # eight programs of 128 threads at a time
        assert int(spilled) == 0
        assert 5 < float(per_weight) < 60
