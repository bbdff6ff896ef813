"""The real command `st3`, tiny runs for it, and image trees."""

from collections.abc import Iterable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import numpy as np
from command_cases import TINY, Answer, st3_train
from PIL import Image

from st3.cli import main


def st3_(*words: object) -> Answer:
    """`st3 WORDS`."""
    out, err = StringIO(), StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = main([str(word) for word in words])
    return Answer(code, out.getvalue(), err.getvalue())


def refused(*words: object, code: int = 2) -> str:
    """What `st3 WORDS` says of a mistake: one line, and no more than that."""
    answer = st3_(*words)
    assert answer.code == code, answer
    assert answer.err.count("\n") == 1, answer.err
    return answer.err.rstrip()


def trained(path: Path, *words: str) -> Path:
    """The folder of a tiny run."""
    answer = st3_train(*TINY, f"run_dir={path}", *words)
    assert answer.code in (0, 1), answer  # 1: it has learned nothing, as images are noise
    assert (path / "model.safetensors").exists()
    return path


def tree(root: Path, splits: Iterable[str], classes: Iterable[str] = "abc", images: int = 6) -> Path:
    """An image tree: noise of several sizes and colour modes, brighter by class, as PNG and JPEG."""
    random = np.random.default_rng(0)
    for split in splits:
        for bright, label in enumerate(classes):
            folder = root / split / label
            folder.mkdir(parents=True)
            for number in range(images):
                shape = (20 + number, 26, 3) if number % 3 else (24, 24)
                pixels = random.integers(60 * bright, 60 * bright + 100, shape).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.{'jpg' if number % 2 else 'png'}")
    return root


FOLDER = [
    "dataset=folder", "dataset.classes=null", "dataset.train_images=null", "dataset.test_images=null",
    "dataset.image_size=16", "dataset.workers=0", "batch_size=6",
]  # fmt: skip
"""In place of the data of TINY; `dataset.root=DIR` is to be added."""
