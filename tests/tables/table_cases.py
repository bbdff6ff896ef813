"""A small table, and a stub for the training of its runs."""

import sys
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

import pytest
from fake_runs import fake_layer, fake_run, fake_summary

from st3.report.table import Row, load_table
from st3.tables import workers
from st3.tables.plan import Task, plan

SMALL = """
title: Small
overrides: [dataset=fake, dataset.image_size=8, dataset.train_images=96, dataset.test_images=40, dataset.classes=7,
            batch_size=32, epochs=2, device=cpu]
sparsities: [0.8]
series:
  - {label: Dense, method: dense, points: {0: {}}}
  - {label: ST-3, method: st3}
  - {label: linear, method: st3, overrides: [schedule.power=1]}
  - {label: Unheard-of, method: unheard_of, source: a paper, points: {0.9: {top1: 50}}}
"""
RUNS = ["dense-0-s0", "linear-80-s0", "st-3-80-s0"]

STUB = """
import pathlib, shutil, sys, time
from st3.errors import InUseError
from st3.training.lock import Lock
settings = dict(override.split("=", 1) for override in sys.argv[1:])
folder, given = pathlib.Path(settings["run_dir"]), pathlib.Path("given")
folder.mkdir(parents=True, exist_ok=True)
try:
    lock = Lock.acquire(folder / ".lock")
except InUseError as error:
    print(error)
    sys.exit(7)
with open("starts", "a") as file:
    file.write(folder.name + "\\n")
time.sleep(float((given / "seconds").read_text()))
for _ in range(6000):
    if len(pathlib.Path("starts").read_text().splitlines()) >= int((given / "together").read_text()):
        break
    time.sleep(0.01)
else:
    sys.exit("st3-train: error: the others have not begun")
if (given / f"{folder.name}.fails").exists():
    sys.exit("a word before\\nst3-train: error: " + (given / f"{folder.name}.fails").read_text())
shutil.copytree(given / folder.name, folder, dirs_exist_ok=True)
lock.release()
"""


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """The current folder, with small.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    return tmp_path


@pytest.fixture
def stub(here, monkeypatch) -> Path:
    """The folder "given", from which the stub takes how long it works, how many must have begun before one
    ends, on whom it fails and what it leaves behind."""
    given = here / "given"
    given.mkdir()
    (given / "stub.py").write_text(STUB)
    (given / "seconds").write_text("0")
    (given / "together").write_text("1")
    for task in small_tasks((0, 1, 2)):
        config, layers = task.checked().config.plain(), [fake_layer("conv", 0.8)]
        fake_run(
            given / task.run_dir.name, fake_summary(epochs=2), config=config, overrides=task.overrides, layers=layers
        )
    monkeypatch.setattr(workers, "TRAIN", (sys.executable, "given/stub.py"))
    return given


@cache
def small_rows() -> list[Row]:
    """Those that can be trained."""
    with NamedTemporaryFile("w", suffix=".yaml") as file:
        file.write(SMALL)
        file.flush()
        return load_table(Path(file.name)).rows[:3]


@cache
def small_tasks(seeds: tuple[int, ...]) -> list[Task]:
    """Of these rows, in the folder out."""
    return plan(small_rows(), [], seeds, Path("out"))


def starts(here: Path) -> list[str]:
    """Names of the runs whose training has started, once for each time."""
    return sorted((here / "starts").read_text().split()) if (here / "starts").exists() else []
