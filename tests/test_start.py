"""Trainings that start from weights: of a run, a file, published ones; and how sparse they begin."""

from pathlib import Path

import pytest
import torch
from command_cases import refused, st3_train
from config_cases import load
from helpers import assert_same
from safetensors.torch import load_file

from st3.run import build
from st3.sketch import choose_execution, sketch
from st3.training.machine import Machine
from st3.training.run_directory import RunDirectory

TINY = [
    "dataset=fake", "dataset.image_size=8", "dataset.train_images=96", "dataset.test_images=40", "dataset.classes=7",
    "batch_size=16", "log_every=2", "precision=fp32", "device=cpu",
]  # fmt: skip
FROM_RUN = ["batch_size=16", "epochs=3", "precision=fp32", "device=cpu", "dry_run=true"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """A dense run, a sparse one and one with an average, each of 12 or 18 steps."""
    folder = tmp_path_factory.mktemp("runs")
    for name, words in {
        "dense": ["method=dense"], "sparse": ["sparsity=0.8"], "average": ["sparsity=0.8", "ema=0.9"],
    }.items():  # fmt: skip
        answer = st3_train(*TINY, *words, "epochs=2", f"run_dir={folder / name}")
        assert (answer.code, answer.err) == (0, "")
    return folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def started(*words: str):
    """Network, sparsifier and what the run will be, before the first step."""
    run = sketch(load(*words))
    machine = Machine(torch.device("cpu"))
    state, _ = build(run, machine, choose_execution(run, machine))
    return state, run


def test_a_sparse_run_goes_on_from_its_raw_weights_as_the_network_that_it_was(runs):
    state, run = started(*TINY, f"model.weights={runs / 'sparse'}", "sparsity=0.95", "epochs=3")
    left = RunDirectory(runs / "sparse").checkpoint()[0].state
    raw = state.sparsifier.raw_weights()
    assert_same(dict(raw), left["sparsifier"]["raw"])
    network = load_file(runs / "sparse" / "model.safetensors")
    for name, value in state.model.state_dict().items():
        assert torch.equal(value == 0, network[name] == 0)
        torch.testing.assert_close(value, network[name], atol=1e-5, rtol=1e-4)  # τ lies between the same two weights
    ramp = run.plan.sparsity
    assert ramp.initial == pytest.approx(0.8, abs=1e-5)
    assert [ramp.value(step) for step in range(run.plan.total_steps)] == sorted(map(ramp.value, range(18)))
    assert ramp.value(17) == 0.95


def test_all_that_has_to_be_typed_is_the_run_and_the_sparsity(runs):
    answer = st3_train(f"model.weights={runs / 'sparse'}", "sparsity=0.95", *FROM_RUN)
    assert (answer.code, answer.err) == (0, "")
    assert answer.line("model").startswith("resnet20, 3×8×8 input, 7 classes")
    assert answer.line("data") == "fake: 96 training, 40 test images, augmentation none"
    assert answer.line("weights") == f"from {runs / 'sparse'}, raw weights, 80.00% zero"
    assert answer.line("sparsity").startswith("80.00% up to step 1 (epoch 0.167), ramp of power 3 to 95.00%")


def test_a_sweep_starts_each_of_its_jobs_from_the_run(runs):
    answer = st3_train("-m", f"model.weights={runs / 'sparse'}", "sparsity=0.9,0.95", *FROM_RUN)
    assert answer.code == 0
    assert answer.out.count(f"weights    from {runs / 'sparse'}, raw weights, 80.00% zero") == 2
    assert "to 95.00% of the weights" in answer.out


def test_what_is_typed_wins_over_what_the_run_had(runs):
    words = f"model.weights={runs / 'dense'}", "dataset.test_images=20", "dataset.classes=4", *FROM_RUN
    answer = st3_train(*words)
    assert answer.line("data") == "fake: 96 training, 20 test images, augmentation none"
    assert answer.line("weights") == f"from {runs / 'dense'}, fc starts anew, for 4 classes"
    assert answer.line("sparsity").startswith("0 up to step 1 ")
    other = st3_train(f"model.weights={runs / 'dense'}", "dataset=fashion_mnist_embedded", *FROM_RUN)
    assert "conv1.weight is 16×3×3×3 there and 16×1×3×3 here" in other.err
    assert other.code == 2


@pytest.mark.parametrize("file", ["model.safetensors", "best.pt"])
def test_a_file_is_the_sparse_network(file, runs):
    state, run = started(*TINY, f"model.weights={runs / 'sparse' / file}", "sparsity=0.9", "epochs=3")
    assert run.plan.sparsity.initial == pytest.approx(0.8, abs=1e-4)
    values = load_file(runs / "sparse" / "model.safetensors")
    if file == "model.safetensors":
        assert_same(dict(state.sparsifier.raw_weights()), {
            name: values[f"{name}.weight"] for name in state.sparsifier.pruned_layers
        })  # fmt: skip
    zeros = {name: value == 0 for name, value in values.items()}
    for name, weight in state.sparsifier.weights.items():
        if file == "model.safetensors":
            assert (weight == 0)[zeros[f"{name}.weight"]].all()


def test_an_average_of_raw_weights_is_what_a_run_with_one_leaves(runs):
    state, run = started(*TINY, f"model.weights={runs / 'average'}", "sparsity=0.9", "epochs=3")
    average = RunDirectory(runs / "average").checkpoint()[0].state["average"]["values"]
    for name, raw in state.sparsifier.raw_weights().items():
        assert torch.equal(raw, average[f"{name}.weight"])
    assert run.plan.sparsity.initial == pytest.approx(0.8, abs=1e-4)


def test_a_whole_run_from_a_run_and_its_continuation(runs):
    words = f"model.weights={runs / 'sparse'}", "sparsity=0.95", *FROM_RUN[:-1], "run_dir=next"
    answer = st3_train(*words)
    assert (answer.code, answer.err) == (0, "")
    assert "\nsparsity   94.99" in answer.out or "\nsparsity   95.00" in answer.out
    assert "holds this run already, finished" in st3_train(*words).out
    assert "model.weights=" in refused(*(word for word in words if not word.startswith("model.weights")), *TINY)


@pytest.mark.slow
def test_a_finetuning_recipe_starts_from_a_run_as_well(tmp_path):
    words = ["dataset=fake", *TINY[1:], "dataset.image_size=32", "dataset.augment=none", "epochs=1"]
    made = st3_train("model=mobilenet_v2", *words, "sparsity=0.5", "run_dir=first")
    assert made.err == ""  # the code is 1: three steps leave BatchNorm's statistics such that all logits are the same
    recipe = "recipe=finetune_mobilenet_v2", "model.weights=first", "sparsity=0.8"
    answer = st3_train(*recipe, *words, "dataset.classes=5", "run_dir=second")
    assert answer.err == ""
    assert answer.line("weights").startswith("from first, raw weights, ")
    assert answer.line("weights").endswith("% zero, classifier.1 starts anew, for 5 classes")
    assert answer.out.count("\nsparsity   80.00") == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["model.weights=nowhere"], "model.weights=nowhere does not exist: give pretrained, a file, or the folder"),
        (["model.weights=."], "model.weights=. holds no weights: give the folder of a run, or a file"),
        (["model.weights=pretrained"], "model.weights=pretrained: nobody publishes weights of resnet20"),
        (["model.weights=RUN/sparse", "sparsity=0.5"], "RUN/sparse is 80.00% sparse already: raise sparsity above"),
        (["model.weights=RUN/sparse", "model=resnet32"], "does not fit the network: lacks layer1.3.conv1.weight"),
    ],
)
def test_what_cannot_be_started_from_is_one_line(words, says, runs):
    words = [word.replace("RUN", str(runs)) for word in words]
    assert says.replace("RUN", str(runs)) in refused(*TINY, *words)
