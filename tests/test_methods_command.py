"""Every method through the real command: interrupted, continued, and loaded without st3's training code."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from st3.models import build_model
from st3.sparsify import METHODS
from st3.train import main
from st3.training.run_directory import RunRecorder

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=96", "dataset.test_images=20", "dataset.classes=7",
    "batch_size=16", "epochs=4", "log_every=3", "sparsity=0.8",
]  # fmt: skip
STEPS = 24

OPTIONS = {
    "st3": "", "st3_sigma": "", "hard_ste": "", "gmp": "method.every=4st", "feather": "schedule.start=0",
    "str": "schedule=constant method.threshold_init=-4", "rigl": "schedule=constant method.every=4st",
    "set": "schedule=constant method.every=4st", "granet": "method.every=4st", "acdc": "schedule=acdc",
    "topkast": "schedule=constant", "probmask": "schedule=probmask", "dense": "",
}  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def st3_train(arguments, monkeypatch) -> int:
    monkeypatch.setattr(sys, "argv", ["st3-train", *arguments])
    try:
        main()
    except SystemExit as stop:
        return stop.code
    return 0


def interrupt_after(epoch: int, monkeypatch) -> None:
    """Control-C as soon as the checkpoint of `epoch` is written."""
    checkpoint = RunRecorder.checkpoint

    def then_stop(self, state):
        checkpoint(self, state)
        if state.epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "checkpoint", then_stop)


def test_every_method_is_here():
    assert OPTIONS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", OPTIONS)
def test_interrupted_continued_and_loaded(name, here, monkeypatch, capsys):
    command = [*TINY, f"method={name}", *OPTIONS[name].split()]
    assert st3_train([*command, "run_dir=whole"], monkeypatch) == 0

    for epoch in (1, 3):
        with monkeypatch.context() as patch:
            interrupt_after(epoch, patch)
            assert st3_train([*command, "run_dir=parts"], patch) == 130
        out = capsys.readouterr().out
        assert f"continue: st3-train {' '.join(command)} run_dir=parts" in out
        assert not (here / "parts" / "model.safetensors").exists()
    assert st3_train([*command, "run_dir=parts"], monkeypatch) == 0
    assert "continuing parts after epoch 3" in capsys.readouterr().out

    whole, parts = (load_file(here / run / "model.safetensors") for run in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[key], parts[key]) for key in whole)

    summary = json.loads((here / "parts" / "summary.json").read_text())
    assert (summary["finished"], summary["steps"], summary["method"]) == (True, STEPS, name)
    network = build_model("resnet20", classes=7, image_size=8)
    network.load_state_dict(parts)
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    zeros = sum((w == 0).sum().item() for w in weights)
    assert zeros == summary["zeros"]
    assert sum(w.numel() for w in weights) == summary["prunable"]
    if name == "dense":
        assert zeros == 0
    elif name == "str":
        assert 0 < zeros < summary["prunable"]
    else:
        assert abs(zeros - 0.8 * summary["prunable"]) <= 1


@pytest.mark.parametrize("end", ["100%", "13st"])
@pytest.mark.parametrize("name", ["gmp", "granet"])
def test_the_target_is_met_wherever_the_ramp_ends(name, end, here, monkeypatch):
    command = [*TINY, f"method={name}", "method.every=5st", f"schedule.end={end}", "run_dir=run"]
    assert st3_train(command, monkeypatch) == 0
    summary = json.loads((here / "run" / "summary.json").read_text())
    assert abs(summary["zeros"] - 0.8 * summary["prunable"]) <= 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        *[(f"method={name}", "follows no ramp: schedule=constant") for name in ("rigl", "set", "topkast", "str")],
        ("method=acdc", "follows no ramp: schedule=acdc"),
        *[
            (f"method={name} {OPTIONS[name]} method.target=flops", "target=flops is for st3, st3_sigma and hard_ste")
            for name in sorted(METHODS.keys() - {"st3", "st3_sigma", "hard_ste", "dense"})
        ],
        ("method=gmp method.every=0", "method.every must be at least one optimizer step"),
        ("method=gmp method.every=often", "method.every=often is no duration"),
        ("method=gmp method.allocation=erk", "method.allocation=erk is not known: choose global or uniform"),
        ("method=gmp method.drop=0.3", "method.drop=0.3 has no effect with method.name=gmp"),
        ("method=rigl schedule=constant method.drop=2", "method.drop=2 lies outside [0, 1]"),
        ("method=feather method.exponent=0", "method.exponent=0 must be at least 1"),
        ("method=str schedule=constant method.threshold_decay=-1", "method.threshold_decay=-1 must not be negative"),
        ("method=probmask schedule=probmask schedule.end=95%", "method.until makes the mask hard before schedule.end"),
        ("method=probmask schedule=probmask method.until=110%", "method.until=110% (step 26) comes after the end"),
        ("method=probmask schedule=acdc", "this method never becomes dense again: schedule=probmask"),
        ("method=probmask schedule=probmask method.probability_lr=0", "method.probability_lr=0 must be positive"),
        ("method=topkast schedule=constant method.backward=3", "method.backward=3 lies outside [0, 1]"),
        ("method=acdc schedule=acdc schedule.period=0", "schedule: the phases must be at least one step long"),
        ("method=acdc schedule=acdc schedule.last_dense=95%", "schedule: the phases must follow each other"),
    ],
)
def test_a_mistake_ends_in_one_line_and_writes_nothing(arguments, says, here, monkeypatch, capsys):
    assert st3_train([*TINY, *arguments.split(), "run_dir=run"], monkeypatch) == 2
    err = capsys.readouterr().err
    assert err.startswith("st3-train: error: ")
    assert err.count("\n") == 1
    assert says in err
    assert list(here.iterdir()) == []
