"""The examples of CONTRIBUTING.md, carried out in a copy of this project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")


def section(title: str) -> str:
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", GUIDE, re.DOTALL | re.MULTILINE)[1]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with all three examples: blocks go into the file named last before them, or at the end of it."""
    folder = tmp_path_factory.mktemp("copy")
    for part in ("st3", "configs", "tests"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    for title in ("Add a method", "Add a schedule", "Add a data set"):
        text = section(title)
        for block in re.finditer(r"```(?:python|yaml)\n(.*?)```", text, re.DOTALL):
            path = folder / re.findall(r"`((?:st3|configs|tests)/[\w/]+\.(?:py|yaml))`", text[: block.start()])[-1]
            before = path.read_text(encoding="utf-8") if path.exists() else ""
            path.write_text(f"{before}{block[1]}", encoding="utf-8")
    run(folder, "-m", "st3.variants")
    return folder


def run(folder: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def commands(title: str) -> list[str]:
    (block,) = re.findall(r"```bash\n(.*?)```", section(title), re.DOTALL)
    return block.split()[1:]


SMALL = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=96", "dataset.test_images=20", "batch_size=16",
    "device=cpu",
]  # fmt: skip


@pytest.mark.slow
def test_a_method_of_three_files_trains_from_the_command_line(copy):
    out = run(copy, "-m", "st3.train", *SMALL, *commands("Add a method"), "run_dir=run")
    assert "method     random: every 2%" in out
    assert re.search(r"sparsity   80\.\d+% \(target 80\.00%\)", out)
    added = {path.relative_to(copy) for path in copy.rglob("*random*") if path.suffix in (".py", ".yaml")}
    assert {str(path) for path in added} == {
        "st3/sparsify/methods/random_.py", "configs/method/random.yaml", "tests/sparsify/methods/test_random.py",
    }  # fmt: skip


@pytest.mark.slow
def test_a_new_method_is_held_to_the_contract_without_a_word(copy):
    tests = ["tests/sparsify/test_contract.py", "tests/sparsify/methods/test_random.py"]
    out = run(copy, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-k", "random", *tests)
    assert int(re.search(r"(\d+) passed", out)[1]) > 10


@pytest.mark.slow
def test_a_schedule_trains_from_the_command_line(copy):
    out = run(copy, "-m", "st3.train", *SMALL, *commands("Add a schedule"), "epochs=1", "run_dir=ramp")
    assert re.search(r"sparsity   (89\.9|90\.0)\d*% \(target 90\.00%\)", out)


@pytest.mark.slow
def test_a_data_set_trains_from_the_command_line(copy):
    out = run(copy, "-m", "st3.train", *commands("Add a data set"), "sparsity=0.5", "device=cpu", "run_dir=bars")
    assert "data       bars: 512 training, 256 test images" in out
