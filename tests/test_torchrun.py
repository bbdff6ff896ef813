"""The real command as two processes under torchrun: one voice, one run directory, one end, the same bits after it."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers import assert_same

from st3.training.run_directory import RunDirectory

pytestmark = pytest.mark.slow

EPOCHS = 5
TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=320", "dataset.test_images=41", "dataset.classes=7",
    "batch_size=32", f"epochs={EPOCHS}", "log_every=5", "precision=fp32", "device=cpu", "ema=0.9",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "st3.train"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(port: int, rank: int) -> dict[str, str]:
    """Environment variables of process `rank` of two, as torchrun sets them."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return {name: str(value) for name, value in names.items()} | {"OMP_NUM_THREADS": "1"}


def environment(**changes: str) -> dict[str, str]:
    """Processes are told nothing but by torchrun or `together`."""
    return {name: value for name, value in os.environ.items() if name not in together(0, 0)} | changes


def wait_for(event, *processes: subprocess.Popen) -> None:
    """Until `event()` is true, while `processes` run."""
    deadline = time.monotonic() + 120
    while not event():
        assert all(process.poll() is None for process in processes), "the run ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def lines_of(text: str, start: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith(start)]


def torchrun(arguments: list[str], folder: Path, **changes: str) -> subprocess.CompletedProcess:
    """Two processes of the real command."""
    command = [*TORCHRUN, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=folder, env=environment(**changes), **pipes) as agent:
        try:
            out, error = agent.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            agent.terminate()  # it ends the processes that it started; killed, it would leave them
            raise
    return subprocess.CompletedProcess(command, agent.returncode, out, error)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess]:
    """A folder and what was said: six jobs under torchrun, of which only [4] can finish."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "taken").mkdir()
    (folder / "taken" / "letter.txt").write_text("dear")
    jobs = ["-m", "run_dir=taken,taken/letter.txt/below,null", "optimizer.lr=0.1,1e30"]
    return folder, torchrun([*jobs, *TINY], folder)


def test_what_all_processes_find_is_said_once(sweep):
    _, answer = sweep
    assert answer.returncode != 0
    errors = lines_of(answer.stderr, "st3-train: error: ")
    assert sum("run_dir=taken holds other files but no run" in line for line in errors) == 2  # jobs 0 and 1
    assert sum("taken/letter.txt is a file, choose another" in line for line in errors) == 2  # jobs 2 and 3
    assert sum("the loss is " in line for line in errors) == 1  # job 5
    assert len(errors) == 5
    for job in range(6):
        assert len(lines_of(answer.stdout, f"[{job}] ")) == 1
    assert len(lines_of(answer.stdout, "precision  fp32 on cpu, 2 processes")) == 2
    assert len(lines_of(answer.stdout, f"epoch {EPOCHS}/{EPOCHS}: ")) == 1
    assert len(lines_of(answer.stdout, "top-1 ")) == 1


def test_the_main_process_makes_the_only_run_directory(sweep):
    folder, _ = sweep
    assert {path.name for path in folder.iterdir()} == {"taken", "outputs"}
    assert [path.name for path in (folder / "taken").iterdir()] == ["letter.txt"]
    runs = sorted(path.parent.name for path in folder.rglob("config.yaml"))
    assert [name[:2] for name in runs] == ["4-", "5-"]  # one for each job that got so far
    summaries = list(folder.rglob("summary.json"))
    assert len(summaries) == 1
    summary = json.loads(summaries[0].read_text())
    assert (summary["finished"], summary["processes"], summary["steps"]) == (True, 2, 10 * EPOCHS)
    assert abs(summary["zeros"] - 0.9 * summary["prunable"]) <= 1
    assert len(list(summaries[0].parent.glob("events.out.tfevents*"))) == 1
    assert summary["top1"] * 41 / 100 == pytest.approx(round(summary["top1"] * 41 / 100))  # all 41 images count
    with open(summaries[0].parent / "metrics.csv", newline="") as file:
        assert [row["step"] for row in csv.DictReader(file)] == [str(step) for step in range(5, 10 * EPOCHS + 1, 5)]


def test_a_mistake_is_told_although_the_main_process_finds_it_last(tmp_path):
    # torchrun ends the others as soon as the first process has failed.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(3)\n"
    )
    here = tmp_path / "here"
    here.mkdir()
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    answer = torchrun(["hydra/launcher=submitit_slurm"], here, PYTHONPATH=paths)  # found before PyTorch is imported
    assert answer.returncode != 0
    errors = lines_of(answer.stderr, "st3-train: error: ")
    assert errors == ["st3-train: error: hydra/launcher=submitit_slurm has no effect on a single run: add -m"]
    assert list(here.iterdir()) == []


def pair(arguments: list[str], folder: Path) -> tuple[subprocess.Popen, subprocess.Popen]:
    """The two processes without torchrun, the main one first."""
    port, command = free_port(), [sys.executable, "-m", "st3.train", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True, "cwd": folder}
    main, other = (subprocess.Popen(command, env=environment(**together(port, rank)), **pipes) for rank in (0, 1))
    return main, other


def state_of(run: Path) -> dict:
    generation, _ = RunDirectory(run).checkpoint()
    return generation.state


def test_processes_end_with_the_first_that_dies_and_continue_to_the_same_bits(sweep, tmp_path):
    """Without torchrun, which would end the others: nobody ends the process that is left but itself."""
    arguments, killed, started = [*TINY, "run_dir=killed"], RunDirectory(tmp_path / "killed"), []

    def written() -> list[str]:
        return sorted(path.name for path in (killed.path / "checkpoints").glob("[0-9]*"))

    try:
        for dies in (0, 1):
            before, both = written(), pair(arguments, tmp_path)
            started += both
            wait_for(lambda: written() != before, *both)  # noqa: B023
            both[dies].send_signal(signal.SIGKILL)
            assert both[1 - dies].wait(timeout=60) not in (0, None)
        epochs = state_of(killed.path)["epoch"]
        assert 1 < epochs < EPOCHS

        main, other = pair(arguments, tmp_path)
        started += [main, other]
        said, _ = main.communicate(timeout=60)
        assert (main.returncode, other.wait(timeout=60)) == (0, 0)
        assert lines_of(said, "continuing ") == [f"continuing killed after epoch {epochs}"]
    finally:
        for process in started:
            process.kill()
            process.wait()
            if process.stdout:
                process.stdout.close()
    [finished] = sweep[0].rglob("summary.json")
    networks = [(path / "model.safetensors").read_bytes() for path in (finished.parent, killed.path)]
    assert networks[0] == networks[1]
    expected, found = state_of(finished.parent), state_of(killed.path)
    for state in (expected, found):
        for name in [*(name for name in state if name.endswith("seconds")), "settings"]:
            del state[name]
    assert_same(expected, found)
