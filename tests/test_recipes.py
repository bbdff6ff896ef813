"""The recipes of single methods: what each changes in the recipe that it inherits from, and nothing else."""

import functools
import math
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from st3.build import make_model, make_optimizer, make_plan, make_sparsifier, read_facts
from st3.config import Config, load_config
from st3.measure import layer_macs
from st3.sparsify import METHODS, AlternatingPhases, Constant, PolynomialRamp
from st3.train import config_path, main

FOLDER = Path(config_path(), "recipe")
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))
CIFAR, IMAGENET = 351, 2502  # optimizer steps of an epoch of the inherited recipes

ACDC = {"batch_size": 256, "optimizer.lr": 0.256, "optimizer.weight_decay": 2**-15}
STR = {"batch_size": 256, "optimizer.lr": 0.256}
RIGL = {
    "batch_size": 4096, "accumulate": 8, "optimizer.lr": 1.6, "optimizer.weight_decay": 1e-4, "optimizer.momentum": 0.9,
    "optimizer.nesterov": True, "lr_schedule.name": "multistep", "lr_schedule.milestones": ["30%", "70%", "90%"],
    "lr_schedule.gamma": 0.1, "lr_schedule.final": None,
}  # fmt: skip
COSINE = {
    "lr_schedule.name": "cosine", "lr_schedule.milestones": None, "lr_schedule.gamma": None, "lr_schedule.final": 0,
}  # fmt: skip
CHANGED = {
    "cifar10_resnet20/acdc": {
        "epochs": 200, "optimizer.weight_decay": 5e-4, "lr_schedule.milestones": ["32.5%", "62.5%", "92.5%"],
    },
    "cifar10_resnet20/feather": {"optimizer.weight_decay": 5e-4} | COSINE,
    "cifar10_resnet20/granet": {"optimizer.weight_decay": 5e-4},
    "cifar10_resnet20/str": {"optimizer.weight_decay": 6e-4},
    "imagenet_resnet50/acdc": ACDC,
    "imagenet_resnet50/rigl": RIGL,
    "imagenet_resnet50/set": RIGL,
    "imagenet_resnet50/str": STR | {"sparsity": 0.9023, "optimizer.weight_decay": 2.251757813e-5},
    "imagenet_mobilenet_v1/acdc": ACDC,
    "imagenet_mobilenet_v1/str": STR | {"sparsity": 0.8901, "optimizer.weight_decay": 3.751757813e-5},
}  # fmt: skip
"""Beside method and schedule. A recipe that is not here changes nothing else."""


def ramp(start: int, end: int, steps: int) -> PolynomialRamp:
    return PolynomialRamp(final=0.95 if steps == CIFAR else 0.9, start=start * steps, end=end * steps)


def phases(final: float, steps: int, *epochs: int) -> AlternatingPhases:
    start, period, last_dense, end = (steps * epoch for epoch in epochs)
    return AlternatingPhases(final=final, start=start, period=period, last_dense=last_dense, end=end)


SCHEDULES = {
    "cifar10_resnet20/acdc": phases(0.95, CIFAR, 10, 20, 150, 170),
    "cifar10_resnet20/feather": ramp(0, 80, CIFAR),
    "cifar10_resnet20/gmp": ramp(5, 80, CIFAR),
    "cifar10_resnet20/granet": ramp(0, 80, CIFAR),
    "cifar10_resnet20/hard_ste": ramp(5, 80, CIFAR),
    "cifar10_resnet20/probmask": PolynomialRamp(final=0.95, start=round(0.16 * 140 * CIFAR), end=84 * CIFAR),
    "imagenet_resnet50/acdc": phases(0.9, 5004, 10, 5, 75, 85),
    "imagenet_resnet50/feather": ramp(0, 50, IMAGENET),
    "imagenet_resnet50/gmp": ramp(5, 50, IMAGENET),
    "imagenet_resnet50/granet": ramp(0, 30, IMAGENET),
    "imagenet_resnet50/hard_ste": ramp(5, 50, IMAGENET),
    "imagenet_resnet50/probmask": PolynomialRamp(final=0.9, start=14 * IMAGENET, end=round(52.5 * IMAGENET)),
    "imagenet_mobilenet_v1/acdc": phases(0.9, 5004, 10, 5, 75, 85),
}
"""Those that are not here are sparse from the first step on."""

SETTINGS = {
    "cifar10_resnet20/gmp": {"allocation": "uniform"},
    "cifar10_resnet20/granet": {"every": 1000, "until": 160 * CIFAR},
    "cifar10_resnet20/probmask": {"until": 140 * CIFAR},
    "cifar10_resnet20/rigl": {"every": 100, "until": 120 * CIFAR, "drop": 0.3},
    "cifar10_resnet20/set": {"every": 100, "until": 120 * CIFAR, "drop": 0.3},
    "imagenet_resnet50/gmp": {"allocation": "uniform"},
    "imagenet_resnet50/granet": {"every": 1000, "until": 100 * IMAGENET},
    "imagenet_resnet50/probmask": {"until": round(87.5 * IMAGENET)},
    "imagenet_resnet50/rigl": {"every": 100, "until": 75 * 312, "drop": 0.3},
    "imagenet_resnet50/set": {"every": 100, "until": 75 * 312, "drop": 0.3},
    "imagenet_resnet50/str": {"threshold_init": -3200},
    "imagenet_mobilenet_v1/str": {"threshold_init": -12800},
}
"""What a method is given beside its defaults."""


@functools.cache
def load(*overrides: str) -> Config:
    with initialize_config_dir(config_path(), version_base="1.3"):
        return load_config(compose("config", list(overrides)))


def flat(config: Config) -> dict:
    """Settings by dotted name, without those of the method and its schedule."""
    settings = {}
    for name, value in asdict(config).items():
        settings |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in settings.items() if name.partition(".")[0] not in ("method", "schedule")}


def test_every_peer_has_a_recipe_on_both_data_sets():
    peers = METHODS.keys() - {"dense", "st3", "st3_sigma"}
    for base in ("cifar10_resnet20", "imagenet_resnet50"):
        assert {name.partition("/")[2] for name in NAMES if name.startswith(f"{base}/")} == peers
    assert CHANGED.keys() | SCHEDULES.keys() | SETTINGS.keys() <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_its_method_and_inherits_what_it_does_not_change(name):
    base, _, method = name.partition("/")
    config = load(f"recipe={name}")
    before, after = flat(load(f"recipe={base}")), flat(config)
    assert {key: value for key, value in after.items() if value != before[key]} == CHANGED.get(name, {})

    facts = read_facts(config)
    plan = make_plan(config, facts)
    assert plan.sparsity == SCHEDULES.get(name, Constant(config.sparsity))
    with torch.device("meta"):
        network = make_model(config, facts)
    macs = layer_macs(network, (3, config.dataset.image_size, config.dataset.image_size))
    sparsifier = make_sparsifier(config, plan, network, macs).attach(make_optimizer(config, network))
    assert sparsifier.method == replace(METHODS[method], **SETTINGS.get(name, {}))


@pytest.mark.parametrize("name", NAMES)
def test_another_option_leaves_nothing_of_a_recipe_behind(name):
    options = ("optimizer=adamw", "lr_schedule=one_cycle", "schedule=linear")
    config, plain = load(f"recipe={name}", *options, "sparsity=0.7", "epochs=30"), load(*options)
    decay = config.optimizer.weight_decay if name.endswith("/str") else 0.05  # it belongs to the thresholds of STR
    assert config.optimizer == replace(plain.optimizer, weight_decay=decay)
    assert (config.lr_schedule, config.schedule) == (plain.lr_schedule, plain.schedule)
    assert (config.sparsity, config.epochs) == (0.7, 30)


@pytest.mark.parametrize("name", [name for name in NAMES if name.endswith("/str")])
def test_the_decay_alone_brings_the_thresholds_of_str_to_where_they_prune(name):
    config = load(f"recipe={name}")

    def final_score(config: Config) -> float:
        """s after training without a loss: SGD with momentum m multiplies it by exp(−Σ lr·decay/(1 − m))."""
        plan = make_plan(config, read_facts(config))
        rates = sum(plan.lr * plan.lr_schedule.value(step) for step in range(0, plan.total_steps, 100)) * 100
        exponent = rates * config.optimizer.weight_decay / (1 - config.optimizer.momentum)
        return config.method.threshold_init * math.exp(-exponent)

    assert final_score(config) > -1  # sigmoid(-1) = 0.27 is above nearly all weights
    if name == "imagenet_resnet50/str":
        budget = load("recipe=imagenet_resnet50")
        settings = {"weight_decay": config.optimizer.weight_decay}
        elsewhere = replace(budget, method=config.method, optimizer=replace(budget.optimizer, **settings))
        assert final_score(elsewhere) == pytest.approx(-35, abs=1)  # as the head of the recipe says


def test_a_recipe_is_planned_as_typed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["st3-train", "recipe=imagenet_resnet50/rigl", "dry_run=true"])
    main()
    out = capsys.readouterr().out
    assert "batch 4096 in 8 passes" in out
    assert "sparsity   90.00% of the weights from the first step on" in out
    assert list(tmp_path.iterdir()) == []
