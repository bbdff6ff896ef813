"""Hostile files, as `scripts/reliability/hostile.py` makes them: some of each kind, by the script itself."""

import subprocess
import sys
from pathlib import Path

import pytest

from scripts.reliability import hostile

CASES = (
    "config.yaml: aliases", "metrics.csv: a quote", "summary.json: a FIFO", ".lock to a file",
    "best.pt: a plain pickle", "step is infinite", "torch.save: code", "packed: 2 GB of zeros behind",
    "classes that are HTML", "hydra's settings",
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("page.html", "<script>harm()</script>", "not escaped"),
        ("page.html", "&lt;script>harm()", "nothing wrong"),
        ("found.csv", "a,b\n1,=HYPERLINK(1)\n", "not escaped"),
        ("found.csv", "a,b\n1,'=HYPERLINK(1)\n", "nothing wrong"),
        ("victim", "another", "HARM DONE"),
        ("harm", "", "HARM DONE"),
    ],
)
def test_it_sees_what_was_not_escaped_and_what_was_done(name, content, kind, tmp_path):
    for place in (".", "victims", "victims/more"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "victim").write_text("victim")
    (tmp_path / name).write_text(content)
    ending = hostile.Ending(0, "", 1.0, 10**6)
    assert hostile.judged(ending, tmp_path, ending) == kind


def test_it_sees_how_a_command_ended(tmp_path):
    for place in (".", "victims", "victims/more"):
        (tmp_path / place).mkdir(exist_ok=True)
        (tmp_path / place / "victim").write_text("victim")
    plain = hostile.Ending(0, "", 1.0, 10**6)
    line = "st3 eval: error: it is no network"
    for code, said, seconds, memory, kind in (
        (4, line, 1, 10**6, "one line"), (4, f"{line}\n{line}", 1, 10**6, "several lines"),
        (4, "", 1, 10**6, "several lines"), (1, "Traceback", 1, 10**6, "TRACEBACK"), (-9, line, 1, 10**6, "TRACEBACK"),
        (4, line, 61, 10**6, "too long"), (4, line, 1, 2 * 10**9, "too much memory"),
    ):  # fmt: skip
        assert hostile.judged(hostile.Ending(code, said, seconds, memory), tmp_path, plain) == kind


@pytest.mark.slow
def test_what_is_hostile_ends_in_one_line_and_does_no_harm(tmp_path):
    command = [sys.executable, "-m", "scripts.reliability.hostile", tmp_path, "--only", ",".join(CASES)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    _, *rows = [line.split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    tried = [int(row[2]) for row in rows]
    assert len(tried) == 7
    assert sum(tried) >= len(CASES)
