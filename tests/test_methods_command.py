"""Whole runs with every method: interrupted, continued, and loaded without st3's training code."""

import shutil
from pathlib import Path

import pytest
import torch
from command_cases import dot
from config_cases import load
from helpers import assert_same
from safetensors.torch import load_file

import st3.run
from st3.models import build_model
from st3.run import run
from st3.sparsify import METHODS
from st3.training.run_directory import RunDirectory
from st3.training.summary import Summary

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=48", "dataset.test_images=20", "dataset.classes=7",
    "batch_size=8", "epochs=4", "sparsity=0.8", "precision=fp32", "device=cpu",
]  # fmt: skip
STEPS = 24

OPTIONS = dict.fromkeys(("gmp", "rigl", "set", "granet"), "method.every=4st") | {"str": "method.threshold_init=-4"}
"""So that masks are kept for a while; so that thresholds prune in a short training."""


CONTINUED = {5: "epoch 0, step 5 of 6", 6: "epoch 1", 10: "epoch 1, step 4 of 6", 18: "epoch 3"}
"""Step that a run goes on from, and what it says of it."""


def trained(method: str, folder: str, *overrides: str) -> Summary:
    config = load(*TINY, f"method={method}", *OPTIONS.get(method, "").split(), f"run_dir={folder}", *overrides)
    return run(config, [], Path())


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_continued_after_or_in_any_epoch_and_loaded(method, here, monkeypatch, capsys):
    write = RunDirectory.write_checkpoint

    def and_copied(self, state, best, metrics):
        write(self, state, best, metrics)
        being_written = shutil.ignore_patterns("*.partial")  # by the training, which goes on
        shutil.copytree("whole", f"at {state['step']}", dirs_exist_ok=True, ignore=being_written)

    monkeypatch.setattr(st3.run, "draw_run", dot)
    with monkeypatch.context() as patch:
        patch.setattr(RunDirectory, "write_checkpoint", and_copied)
        trained(method, "whole", "checkpoint_every=5st")
    whole = load_file("whole/model.safetensors")
    for step, said in CONTINUED.items():
        assert not Path(f"at {step}", "model.safetensors").exists()
        capsys.readouterr()
        summary = trained(method, f"at {step}")
        assert f"continuing at {step} after {said}\n" in capsys.readouterr().out
        assert_same(load_file(f"at {step}/model.safetensors"), whole)

    assert (summary.finished, summary.steps, summary.method) == (True, STEPS, method)
    network = build_model("resnet20", classes=7, image_size=8)
    network.load_state_dict(whole)
    weights = [m.weight for m in network.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.Linear)]
    zeros = sum((w == 0).sum().item() for w in weights)
    assert zeros == summary.zeros
    assert sum(w.numel() for w in weights) == summary.prunable
    if method == "dense":
        assert zeros == 0
    elif method == "str":
        assert 0 < zeros < summary.prunable
    else:
        assert abs(zeros - 0.8 * summary.prunable) <= 1


@pytest.mark.slow
@pytest.mark.parametrize(("method", "end"), [("gmp", "100%"), ("granet", "13st")])
def test_the_target_is_met_wherever_the_ramp_ends(method, end, here, monkeypatch):
    monkeypatch.setattr(st3.run, "draw_run", dot)
    summary = trained(method, "run", "method.every=5st", f"schedule.end={end}")
    assert abs(summary.zeros - 0.8 * summary.prunable) <= 1


@pytest.mark.slow
def test_what_a_method_warns_of_is_on_the_screen_and_in_the_summary(here, capsys):
    summary = trained("str", "str", "epochs=1")
    said = capsys.readouterr().out
    warning = f"str came out at {summary.sparsity:.2%}, not at 80.00%: st3 search finds the setting for it"
    assert said.splitlines()[-1] == f"warning    {warning}"
    assert RunDirectory(Path("str")).finished().warnings == [warning]

    summary = trained("rigl", "rigl", "epochs=1", "method.every=2st")
    before, after = (line for line in capsys.readouterr().out.splitlines() if line.startswith("warning "))
    assert before == after == f"warning    {summary.warnings[0]}"
    assert summary.warnings == ["the masks change only once: train longer, or shorten method.every"]
