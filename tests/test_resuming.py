"""A run that goes on, with the real command: what may have changed meanwhile, what is refused, what is said."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from command_cases import TINY, refused, st3_train
from PIL import Image

from st3.training.recorder import RunRecorder
from st3.training.run_directory import RunDirectory
from st3.training.signals import Interruption
from st3.training.state import TrainingState

pytestmark = pytest.mark.slow
RUN = [*TINY, "epochs=3", "sparsity=0.8"]


@pytest.fixture
def stops_after(monkeypatch):
    """A function that lets the next run end as if it was asked to, when it has saved a state after so many epochs."""
    original = RunRecorder.checkpoint

    def let(epochs: int) -> None:
        def checkpoint(self, state, content):
            original(self, state, content)
            if state.epoch == epochs:
                monkeypatch.setattr(RunRecorder, "checkpoint", original)
                raise Interruption(signal.SIGTERM)

        monkeypatch.setattr(RunRecorder, "checkpoint", checkpoint)

    return let


def network(run: str | Path) -> bytes:
    return Path(run, "model.safetensors").read_bytes()


def test_the_same_command_twice_gives_the_same_bytes(here, no_picture):
    for run in "ab":
        assert st3_train(*RUN, f"run_dir={run}").code == 0
    for name in ("model.safetensors", "layers.csv", "data.json"):
        assert Path("a", name).read_bytes() == Path("b", name).read_bytes()


def test_a_damaged_checkpoint_is_named_and_the_one_before_gives_the_same_network(here, no_picture, stops_after):
    assert st3_train(*RUN, "run_dir=whole").code == 0
    stops_after(2)
    stopped = st3_train(*RUN, "run_dir=run")
    assert (stopped.code, stopped.line("stopped by SIGTERM; to continue:")) == (143, "st3-train run_dir=run")
    state = Path("run", "checkpoints", "2", "state.pt")
    content = state.read_bytes()
    state.write_bytes(content[:5000] + bytes([content[5000] ^ 1]) + content[5001:])
    again = st3_train("run_dir=run")
    assert again.code == 0
    told = f"{state} is damaged: its SHA-256 is not that of manifest.json: going on from the checkpoint before"
    assert f"warning    {told}\n" in again.out
    assert "continuing run after epoch 1\n" in again.out
    assert network("run") == network("whole")
    for number in (3, 4):
        Path("run", "checkpoints", str(number), "state.pt").write_bytes(b"")
    Path("run", "manifest.json").unlink()
    answer = st3_train("run_dir=run")
    assert answer.code == 4
    assert "state.pt has 0 bytes" in answer.err
    assert "there is no other checkpoint: remove run/checkpoints to begin again" in answer.err


def test_a_finished_run_with_a_damaged_file_is_not_finished_and_can_be_mended(here, no_picture, capsys):
    assert st3_train(*RUN, "run_dir=run").code == 0
    before = network("run")
    Path("run", "model.safetensors").write_bytes(before[:-1])
    answer = st3_train("run_dir=run")
    assert answer.code == 4
    assert "run/model.safetensors has " in answer.err
    assert answer.err.count("\n") == 1
    Path("run", "manifest.json").unlink()
    assert st3_train("run_dir=run").code == 0
    assert network("run") == before


def test_a_second_process_is_refused_and_named(here):
    code = (
        "import sys, time; from pathlib import Path; from st3.training.run_directory import RunDirectory\n"
        "run = RunDirectory(Path('run')); run.claim(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout.readline() == "held\n"
            answer = st3_train(*RUN, "run_dir=run")
        finally:
            holder.kill()
    assert answer.code == 7
    assert f"run is in use by process {holder.pid} on " in answer.err
    assert st3_train(*RUN, "run_dir=run", "epochs=1").code == 0  # it has ended: its lock is taken over
    assert not Path("run", ".lock").exists()


def test_a_loss_that_is_not_finite_may_be_mended_in_the_same_folder_and_that_is_recorded(here, no_picture, stops_after):
    stops_after(1)
    assert st3_train(*RUN, "run_dir=run", "optimizer.lr=0.1").code == 143
    directory = RunDirectory(Path("run"))
    assert "optimizer.lr=0.1, not 1e+30" in refused("run_dir=run", "optimizer.lr=1e30")
    directory.write_stopped("the loss is not finite")  # as it would have at another rate
    broken = st3_train("run_dir=run", "optimizer.lr=1e30", "clip_norm=0")
    assert (broken.code, directory.stopped() != "") == (5, True)
    assert "the loss is not finite after step" in broken.err
    assert "largest weights and gradients: " in broken.err
    assert "sparsity=0.8, not 0.9" in refused("run_dir=run", "sparsity=0.9", "optimizer.lr=0.05")
    mended = st3_train("run_dir=run", "optimizer.lr=0.05", "clip_norm=0")
    assert mended.code == 0
    change = "optimizer.lr was changed from 0.1 to 0.05 after step 3"
    assert change in " ".join(directory.summary().warnings)
    assert "clip_norm was changed from 3.0 to 0.0 after step 3" in " ".join(directory.summary().warnings)
    assert directory.stopped() == ""


def images(root: Path, number: int) -> None:
    for split, count in (("train", number), ("test", 8)):
        for label in ("cat", "dog"):
            (root / split / label).mkdir(parents=True, exist_ok=True)
            for each in range(count):
                Image.new("RGB", (8, 8), (each * 9, 0, 0)).save(root / split / label / f"{each}.png")


def test_images_that_were_changed_meanwhile_are_named_and_refused_unless_accepted(here, no_picture, stops_after):
    images(Path("data"), 24)
    folder = ["dataset=folder", "dataset.root=data", "dataset.image_size=8", "batch_size=16", "epochs=2", "device=cpu"]
    folder += ["dataset.augment=none", "model=resnet20"]
    stops_after(1)
    assert st3_train(*folder, "run_dir=run").code == 143
    Path("data/train/cat/3.png").rename("data/train/cat/x.png")
    answer = st3_train("run_dir=run")
    assert answer.code == 3
    assert "train/cat has other images, as many as before" in answer.err
    assert "go on with dataset.changed=accept" in answer.err
    accepted = st3_train("run_dir=run", "dataset.changed=accept")
    assert accepted.code == 0
    assert "images were changed: train/cat has other images" in " ".join(RunDirectory(Path("run")).summary().warnings)

    images(Path("others"), 25)
    elsewhere = st3_train("run_dir=run", "dataset.root=others")  # which would show the accuracy on the old ones
    assert elsewhere.code == 3
    assert "has 25 images, not 24" in elsewhere.err
    Path("data").rename("moved")
    assert st3_train("run_dir=run", "dataset.root=moved").code == 0


def test_another_number_of_processes_is_refused(here, no_picture, stops_after, monkeypatch):
    stops_after(1)
    assert st3_train(*RUN, "run_dir=run").code == 143
    original = TrainingState.load_state_dict
    monkeypatch.setattr(
        TrainingState, "load_state_dict", lambda self, saved, who: original(self, saved | {"processes": [{}, {}]}, who)
    )
    assert "it is of 2 processes, and these are 1" in refused("run_dir=run")


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 10**9}, {"step": -1}, {"step": 10**6}, {"seconds": float("nan")}, {"row": 7}, {"model": {}},
        {"model": None}, {"optimizer": {"state": {}, "param_groups": []}}, {"processes": []}, {"processes": None},
        {"row": {"a": 1}}, {"scores": {"a": 1}}, {"scores": {"epoch": 1, "test_top1": "1"}}, {"best": {"a": 1}},
        {"best": {"epoch": 1, "test_top1": None}}, {"sparsifier": {}},
        {"processes": [{"random": 0, "loss_sum": 0, "buffers": 0}]}, {"epoch": "1"}, {"best": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_that_says_what_cannot_be_is_refused_in_a_line(here, no_picture, stops_after, change):
    """Its manifest is in order: somebody has written it."""
    stops_after(1)
    assert st3_train(*RUN, "run_dir=run").code == 143
    directory = RunDirectory(Path("run"))
    generation, _ = directory.checkpoint()
    directory._generations.write(generation.state | change, None, generation.metrics)
    answer = st3_train("run_dir=run")
    assert answer.code in (2, 4)
    assert answer.err.count("\n") == 1
    assert "cannot continue from run/checkpoints/2" in answer.err


@pytest.mark.parametrize("metrics", ["epoch,step\n", "\0", "{}1,2\n", "{}a,b,c,d,e,f,g,h,i,j,k,l,m,n\n", "{}\n"])
def test_metrics_that_are_none_are_refused_in_a_line(here, no_picture, stops_after, metrics):
    """Such as would end in a traceback when they are drawn, after the training."""
    stops_after(1)
    assert st3_train(*RUN, "run_dir=run").code == 143
    directory = RunDirectory(Path("run"))
    generation, _ = directory.checkpoint()
    header = generation.metrics.splitlines(keepends=True)[0]
    directory._generations.write(generation.state, None, metrics.format(header))
    answer = st3_train("run_dir=run")
    assert (answer.code, answer.err.count("\n")) == (4, 1)
    assert "cannot continue from run/checkpoints/2: its metrics.csv is not that of a run" in answer.err


def test_rates_and_decays_are_those_of_the_settings_whatever_a_checkpoint_says(here, no_picture, stops_after):
    assert st3_train(*RUN, "run_dir=whole").code == 0
    stops_after(1)
    assert st3_train(*RUN, "run_dir=run").code == 143
    directory = RunDirectory(Path("run"))
    generation, _ = directory.checkpoint()
    for group in generation.state["optimizer"]["param_groups"]:
        group |= {"lr": 1e9, "weight_decay": 5.0, "momentum": 0.0}
    directory._generations.write(generation.state, None, generation.metrics)
    assert st3_train("run_dir=run").code == 0
    assert network("run") == network("whole")


def test_another_environment_is_said(here, no_picture, stops_after):
    stops_after(1)
    assert st3_train(*RUN, "run_dir=run").code == 143
    directory = RunDirectory(Path("run"))
    directory._write_yaml("environment.yaml", directory.environment() | {"torch": "2.10.0"})
    said = "warning    rounding may be another from here on: before, it ran with torch 2.10.0\n"
    assert said in st3_train("run_dir=run").out


def test_a_signal_saves_says_how_to_go_on_and_ends_with_its_code(here):
    """Within an epoch; the same bytes come out. What other signals do: training/test_signals.py."""
    options = [*RUN, "dataset.train_images=3200", "checkpoint_every=0", "log_every=7", "precision=fp32"]
    command, environment = [sys.executable, "-m", "st3.train", *options], os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "run_dir=whole"], env=environment, capture_output=True, check=True)
    number = signal.SIGUSR1
    with subprocess.Popen([*command, "run_dir=run"], env=environment, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not Path("run", "metrics.csv").exists() or len(RunDirectory(Path("run")).metrics()) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert said.endswith(f"\nstopped by {number.name}; to continue: st3-train run_dir=run\n")
    state = RunDirectory(Path("run")).checkpoint()[0].state
    assert 0 < state["step"] < 300
    done = subprocess.run([*command, "run_dir=run"], env=environment, capture_output=True, text=True, check=True)
    assert "continuing run after epoch " in done.stdout
    assert network("run") == network("whole")
    rows = [[(row["step"], row["train_loss"]) for row in RunDirectory(Path(run)).metrics()] for run in ("run", "whole")]
    assert rows[0] == rows[1]
    assert not torch.isnan(torch.tensor([float(loss) for _, loss in rows[0]])).any()


def test_the_checks_of_a_complete_run_and_its_checkpoints_can_be_typed(here, no_picture, capsys):
    from st3.cli import main

    assert st3_train(*RUN, "run_dir=run").code == 0
    capsys.readouterr()
    assert main(["verify", "."]) == 0
    assert capsys.readouterr().out == "run: complete: 10 files and 2 checkpoints are what was written\n"
    metrics = Path("run", "metrics.csv")
    metrics.write_text(metrics.read_text().replace("0.8", "0.9"))
    assert main(["verify", "run"]) == 4
    assert "run/metrics.csv " in capsys.readouterr().out
    manifest = json.loads(Path("run", "manifest.json").read_text())
    manifest["files"]["metrics.csv"]["bytes"] += 1
    Path("run", "manifest.json").write_text(json.dumps(manifest))
    assert main(["verify", "run"]) == 4
    assert "manifest.json is damaged" in capsys.readouterr().out
