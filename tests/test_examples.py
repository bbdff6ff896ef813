"""The examples of docs/examples, as they are run: they stop half-way, go on from a checkpoint, and end at 90 %."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
NEEDS = {"plain_loop": ("torch", 60), "lightning_callback": ("lightning", 48), "accelerate_loop": ("accelerate", 24)}
"""What each imports, and how many optimizer steps it takes in all."""


def test_every_example_is_run_here_is_short_and_linked_from_the_readme():
    assert {path.stem for path in EXAMPLES.glob("*.py")} == NEEDS.keys()
    readme = (EXAMPLES.parents[1] / "README.md").read_text(encoding="utf-8")
    for name in NEEDS:
        assert f"(docs/examples/{name}.py)" in readme
        assert len((EXAMPLES / f"{name}.py").read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_an_example_prints_that_exactly_nine_tenths_are_zero(name):
    package, steps = NEEDS[name]
    pytest.importorskip(package, reason=f"needs {package}: pip install 'st3[{package}]'")
    ran = subprocess.run([sys.executable, EXAMPLES / f"{name}.py"], capture_output=True, text=True, check=True)
    said = re.fullmatch(r"([\d,]+) of 27,184 weights are zero after (\d+) steps", ran.stdout.splitlines()[-1])
    assert abs(int(said[1].replace(",", "")) - 0.9 * 27_184) <= 1
    assert int(said[2]) == steps  # those before the checkpoint are in it
