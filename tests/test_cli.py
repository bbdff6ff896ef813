"""The door `st3`."""

import subprocess
import sys

import pytest

import st3
from st3.cli import VERBS, main


@pytest.mark.parametrize("words", [["--help"], *([verb, "--help"] for verb in VERBS)])
def test_help_explains_and_does_not_wait_for_pytorch(words):
    code = f"import sys; from st3.cli import main\ntry: main({words})\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(verb in done.stdout for verb in VERBS) if words == ["--help"] else f"st3 {words[0]} " in done.stdout
    assert "example" in done.stdout


def test_python_m_is_the_same_door():
    done = subprocess.run([sys.executable, "-m", "st3", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"st3 {st3.__version__}\n")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "st3: error: the following arguments are required: VERB, … (see st3 --help)"),
        (
            ["serch"],
            "st3: error: serch is no verb: write bench or check or eval or export or predict or report or reproduce or "
            "search or verify (see st3 --help)",
        ),
        (["reproduce"], "st3 reproduce: error: the following arguments are required: TABLE"),
        (["search", "a=1..2", "--trial=x"], "st3 search: error: argument --trials: invalid"),
    ],
)
def test_a_mistake_ends_in_one_line(words, says, capsys):
    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith(says)
    assert err.count("\n") == 1
