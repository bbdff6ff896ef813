"""The real command in this process, and a run that is over in a moment."""

import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from unittest.mock import patch

from PIL import Image

from st3.train import main
from st3.training.run_directory import RunDirectory

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=96", "dataset.test_images=40", "dataset.classes=7",
    "batch_size=32", "epochs=3", "log_every=2", "precision=fp32", "device=cpu",
]  # fmt: skip
"""Nine optimizer steps of a ResNet-20."""


def dot(directory: RunDirectory) -> None:
    """In place of `draw_run`, which takes as long as all the rest of a tiny run."""
    Image.new("RGB", (1, 1)).save(directory.picture)


@dataclass
class Answer:
    """What a command leaves on the screen."""

    code: int
    out: str
    err: str

    def line(self, start: str) -> str:
        """The one line that begins so, without that."""
        [line] = [line for line in self.out.splitlines() if line.startswith(f"{start} ")]
        return line.removeprefix(start).strip()


def st3_train(*arguments: str) -> Answer:
    """`st3-train ARGUMENTS`. Raises what the command does not catch."""
    out, err, code = StringIO(), StringIO(), 0
    with patch.object(sys, "argv", ["st3-train", *arguments]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
        except SystemExit as stop:
            code = stop.code
    return Answer(code, out.getvalue(), err.getvalue())


def refused(*arguments: str, code: int = 2) -> str:
    """What is said of a mistake: one line, and no more than that."""
    answer = st3_train(*arguments)
    assert answer.code == code, answer
    assert answer.err.startswith("st3-train: error: ")
    assert answer.err.count("\n") == 1, answer.err
    return answer.err.removeprefix("st3-train: error: ").rstrip()
