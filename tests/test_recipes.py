"""What recipes say against what was published, or their heads say; what a method's changes in the one it inherits."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from command_cases import st3_train
from config_cases import CONFIGS, load
from PIL import Image

from st3.compose import compose_config
from st3.config import Config
from st3.data import dataset_facts
from st3.durations import Duration
from st3.sketch import make_plan
from st3.sparsify import METHODS, AlternatingPhases, Constant, PolynomialRamp
from st3.training.plan import Plan

FOLDER = CONFIGS / "recipe"
BASES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.glob("*/*.yaml"))


def plan_of(config: Config) -> Plan:
    return make_plan(config, dataset_facts(config.dataset))


# Those of the paper ---------------------------------------------------------------------------------------------------

IMAGENET = {
    "epochs": 100, "batch": 512, "steps": 2502, "ramp": (5, 50), "lr": 0.2, "momentum": 0.875, "decay": 5e-5,
    "smoothing": 0.1, "val": 0, "classes": 1000, "augment": "random_resized_crop", "size": 224, "dropout": None,
}  # fmt: skip
CIFAR = {
    "epochs": 160, "batch": 128, "steps": 351, "ramp": (5, 80), "lr": 0.1, "momentum": 0.9, "decay": 1e-4,
    "smoothing": 0, "val": 5000, "classes": 10, "augment": "crop_flip", "size": 32, "dropout": None,
}  # fmt: skip
PUBLISHED = {
    "imagenet_resnet50": IMAGENET | {"model": "resnet50"},
    "imagenet_mobilenet_v1": IMAGENET | {"model": "mobilenet_v1"},
    "cifar10_resnet20": CIFAR | {"model": "resnet20"},
    "cifar10_vgg16": CIFAR | {"model": "vgg16_bn"},
    "cifar100_wrn34_2": CIFAR | {"model": "wrn34_2", "dropout": 0.2, "classes": 100},
}


def test_every_recipe_is_checked_here():
    assert sorted([*PUBLISHED, *FINETUNED, "fashion_mnist_vit_tiny"]) == BASES


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_resolves_to_the_published_settings(recipe):
    want, config = PUBLISHED[recipe], load(f"recipe={recipe}")
    facts, plan, per_epoch = dataset_facts(config.dataset), plan_of(config), want["steps"]
    assert (config.model.name, config.model.dropout) == (want["model"], want["dropout"])
    assert (config.dataset.augment, config.dataset.image_size) == (want["augment"], want["size"])
    assert (config.method, config.schedule.power) == (METHODS["st3"](), 3)
    assert (facts.classes, facts.val_images) == (want["classes"], want["val"])
    assert (plan.epochs, config.batch_size, plan.steps_per_epoch) == (want["epochs"], want["batch"], per_epoch)
    assert (plan.sparsity.start, plan.sparsity.end) == tuple(per_epoch * epoch for epoch in want["ramp"])
    assert (config.optimizer.name, plan.lr, config.optimizer.momentum) == ("sgd", want["lr"], want["momentum"])
    assert (config.optimizer.nesterov, config.optimizer.weight_decay) == (False, want["decay"])
    assert (plan.clip_norm, plan.label_smoothing) == (3.0, want["smoothing"])
    rate = plan.lr_schedule.value
    if recipe.startswith("cifar"):
        assert [rate(351 * epoch) for epoch in range(160)] == pytest.approx([1] * 80 + [0.1] * 40 + [0.01] * 40)
        assert rate(351 * 80 - 1) == 1
    else:
        assert rate(0) == pytest.approx(1 / (5 * 2502))
        assert rate(5 * 2502 - 1) == 1 > rate(5 * 2502 + 1)
        assert rate((5 * 2502 + 100 * 2502) // 2) == pytest.approx(0.5)
        assert rate(100 * 2502 - 1) < 1e-6


def test_the_dense_baseline_of_a_recipe_needs_one_word_only():
    plan = plan_of(load("recipe=imagenet_resnet50", "method=dense"))
    assert (plan.target_sparsity, plan.epochs) == (0, 100)


# Ours -----------------------------------------------------------------------------------------------------------------

FINETUNED = {
    "finetune_resnet50": ("sgd", 0.01, 1e-4, 0.9, 3.0, 0.1, []),
    "finetune_mobilenet_v2": ("sgd", 0.01, 4e-5, 0.75, 3.0, 0.1, []),
    "finetune_vit_b_16": ("adamw", 1e-4, 0.3, 0.75, 1.0, 0.11, ["conv_proj", "heads.head"]),
    "finetune_convnext_tiny": ("adamw", 1e-4, 0.05, 0.75, 1.0, 0.1, ["features.0.0", "classifier.2"]),
}
"""Optimizer, rate, decay, sparsity, clipping, label smoothing, dense layers."""


@pytest.fixture
def tree(tmp_path) -> Path:
    """train/ with 10 and val/ with 4 files of 8x8 pixels in each of two classes."""
    for split, count in (("train", 10), ("val", 4)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (8, 8), (20 * i, 99, 99)).save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize("recipe", FINETUNED)
def test_finetuning_starts_from_published_weights_which_a_dry_run_does_not_fetch(recipe, tree, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *_, **__: pytest.fail("downloads weights"))
    kind, lr, decay, sparsity, clip, smoothing, dense = FINETUNED[recipe]
    words = f"recipe={recipe}", f"dataset.root={tree}", "batch_size=2"  # 10 epochs of 10 steps
    answer = st3_train(*words, "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    assert answer.line("weights") == "from pretrained"
    assert answer.line("model").startswith(f"{recipe.removeprefix('finetune_')}, 3×224×224 input, 2 classes")
    assert "augmentation random_resized_crop" in answer.line("data")

    config = compose_config(words)
    plan, optimizer = plan_of(config), config.optimizer
    assert (optimizer.name, plan.lr, optimizer.weight_decay) == (kind, lr, decay)
    assert (plan.clip_norm, plan.label_smoothing, config.selection.exclude) == (clip, smoothing, dense)
    assert plan.sparsity == PolynomialRamp(final=sparsity, start=0, end=50)
    rates = [plan.lr_schedule.value(step) for step in range(100)]
    assert rates[4] == 1 == max(rates)
    assert rates[0] == 0.2
    assert rates[99] < 0.001
    assert load(f"recipe={recipe}").batch_size == 128


def test_the_vision_transformers_recipe():
    config = load("recipe=fashion_mnist_vit_tiny")
    plan, optimizer = plan_of(config), config.optimizer
    assert (config.model.name, config.dataset.name, config.batch_size) == ("vit_tiny", "fashion_mnist_embedded", 128)
    assert (optimizer.name, plan.lr, optimizer.weight_decay) == ("adamw", 1e-3, 0.05)
    assert (plan.epochs, plan.clip_norm, plan.label_smoothing, plan.target_sparsity) == (10, 1.0, 0, 0.9)
    assert plan.sparsity == ramp(0.9, 62, 0.5, 5)
    assert config.selection.exclude == ["conv_proj", "heads.head"]
    assert plan.lr_schedule.value(30) == 1


# Those of other methods -----------------------------------------------------------------------------------------------

ACDC = {
    "batch_size": 256, "clip_norm": 0.0, "label_smoothing": 0.0, "optimizer.lr": 0.256,
    "optimizer.weight_decay": 2**-15,
}  # fmt: skip
STR = {"batch_size": 256, "clip_norm": 0.0, "optimizer.lr": 0.256}
RIGL = {
    "clip_norm": 0.0,
    "batch_size": 4096, "accumulate": 8, "optimizer.lr": 1.6, "optimizer.weight_decay": 1e-4, "optimizer.momentum": 0.9,
    "optimizer.nesterov": True, "lr_schedule.name": "multistep", "lr_schedule.milestones": ["30%", "70%", "90%"],
    "lr_schedule.gamma": 0.1, "lr_schedule.final": None, "lr_schedule.end": None,
}  # fmt: skip
RIGL_CIFAR = {
    "epochs": 250, "clip_norm": 0.0, "optimizer.weight_decay": 5e-4, "optimizer.nesterov": True,
    "lr_schedule.milestones": ["30.72%", "61.44%", "92.16%"], "lr_schedule.gamma": 0.2,
}  # fmt: skip
COSINE = {
    "lr_schedule.name": "cosine", "lr_schedule.milestones": None, "lr_schedule.gamma": None, "lr_schedule.final": 0.0,
    "lr_schedule.end": "100%",
}  # fmt: skip
CHANGED = {
    "cifar10_resnet20/acdc": {
        "epochs": 200, "clip_norm": 0.0, "optimizer.weight_decay": 5e-4,
        "lr_schedule.milestones": ["32.5%", "62.5%", "92.5%"],
    },
    "cifar10_resnet20/feather": {"optimizer.weight_decay": 5e-4} | COSINE,
    "cifar10_resnet20/finetuned": {"epochs": 170, "lr_schedule.milestones": ["80ep", "120ep"]},
    "cifar10_resnet20/granet": {"clip_norm": 0.0, "optimizer.weight_decay": 5e-4, "optimizer.nesterov": True},
    "cifar10_resnet20/probmask": COSINE | {
        "epochs": 320, "batch_size": 256, "clip_norm": 0.0, "optimizer.weight_decay": 5e-4, "lr_schedule.final": 0.01,
        "lr_schedule.end": "93.75%",
    },
    "cifar10_resnet20/rigl": RIGL_CIFAR,
    "cifar10_resnet20/set": RIGL_CIFAR,
    "cifar10_resnet20/str": {"clip_norm": 0.0, "optimizer.weight_decay": 6e-4},
    "imagenet_resnet50/acdc": ACDC,
    "imagenet_resnet50/granet": {
        "batch_size": 128, "clip_norm": 0.0, "optimizer.lr": 0.1, "optimizer.weight_decay": 1e-4,
        "optimizer.momentum": 0.9, "optimizer.nesterov": True, "lr_schedule.name": "multistep",
        "lr_schedule.milestones": ["30%", "60%", "90%"], "lr_schedule.gamma": 0.1, "lr_schedule.final": None,
        "lr_schedule.end": None,
    },
    "imagenet_resnet50/probmask": {"clip_norm": 0.0},
    "imagenet_resnet50/rigl": RIGL,
    "imagenet_resnet50/set": RIGL,
    "imagenet_resnet50/str": STR | {"sparsity": 0.9023, "optimizer.weight_decay": 2.251757813e-5},
    "imagenet_mobilenet_v1/acdc": ACDC,
    "imagenet_mobilenet_v1/str": STR | {"sparsity": 0.8901, "optimizer.weight_decay": 3.751757813e-5},
}  # fmt: skip
"""Beside method and schedule; None: a setting that is gone. A recipe that is not here changes nothing else."""


def ramp(final: float, steps: int, start: float, end: float, initial: float = 0) -> PolynomialRamp:
    """From epoch to epoch of so many steps."""
    return PolynomialRamp(final=final, start=round(start * steps), end=round(end * steps), initial=initial)


def phases(final: float, steps: int, *epochs: int) -> AlternatingPhases:
    start, period, last_dense, end = (steps * epoch for epoch in epochs)
    return AlternatingPhases(final=final, start=start, period=period, last_dense=last_dense, end=end)


SCHEDULES = {
    "cifar10_resnet20/acdc": phases(0.95, 351, 10, 20, 150, 170),
    "cifar10_resnet20/feather": ramp(0.95, 351, 0, 80),
    "cifar10_resnet20/finetuned": ramp(0.95, 351, 5, 80),
    "cifar10_resnet20/gmp": ramp(0.95, 351, 5, 80),
    "cifar10_resnet20/granet": ramp(0.95, 351, 0, 80, initial=0.5),
    "cifar10_resnet20/hard_ste": ramp(0.95, 351, 5, 80),
    "cifar10_resnet20/probmask": ramp(0.95, 175, 0.16 * 300, 0.6 * 300),
    "imagenet_resnet50/acdc": phases(0.9, 5004, 10, 5, 75, 85),
    "imagenet_resnet50/feather": ramp(0.9, 2502, 0, 50),
    "imagenet_resnet50/gmp": ramp(0.9, 2502, 5, 50),
    "imagenet_resnet50/granet": ramp(0.9, 10009, 0, 30),
    "imagenet_resnet50/hard_ste": ramp(0.9, 2502, 5, 50),
    "imagenet_resnet50/probmask": ramp(0.9, 2502, 14, 52.5),
    "imagenet_mobilenet_v1/acdc": phases(0.9, 5004, 10, 5, 75, 85),
}
"""Those that are not here are sparse from the first step on."""

SETTINGS = {
    "gmp": {"allocation": "uniform", "every": 100},
    "cifar10_resnet20/granet": {"every": 1000, "until": 1.0},
    "imagenet_resnet50/granet": {"every": 4000, "until": 1.0},
    "cifar10_resnet20/probmask": {"until": 300 / 320},
    "imagenet_resnet50/probmask": {"until": 0.875},
    "cifar10_resnet20/rigl": {"every": 100, "until": 75_000 / 97_656, "drop": 0.3, "allocation": "erk"},
    "imagenet_resnet50/rigl": {"every": 100, "until": 0.75, "drop": 0.3, "allocation": "erk"},
    "cifar10_resnet20/set": {"every": 100, "until": 75_000 / 97_656, "drop": 0.3, "allocation": "erk"},
    "imagenet_resnet50/set": {"every": 100, "until": 0.75, "drop": 0.3, "allocation": "erk"},
}
"""As published, of a method or a recipe, whatever the defaults are: steps, or the fraction of the training."""
FIRST_LAYER_DENSE = {"cifar10_resnet20/rigl", "cifar10_resnet20/set"}
THRESHOLDS = {"imagenet_resnet50/str": -3200, "imagenet_mobilenet_v1/str": -12800, "cifar10_resnet20/str": -100}


def common(config: Config) -> dict:
    """Settings by dotted name, without those of the method and its schedule."""
    settings = {}
    for name, value in config.plain().items():
        settings |= {f"{name}.{key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return {name: value for name, value in settings.items() if name.partition(".")[0] not in ("method", "schedule")}


def test_every_peer_has_a_recipe_on_both_data_sets():
    peers = METHODS.keys() - {"dense", "st3", "st3_sigma"}
    for base in ("cifar10_resnet20", "imagenet_resnet50"):
        assert {name.partition("/")[2] for name in NAMES if name.startswith(f"{base}/")} - {"finetuned"} == peers
    assert CHANGED.keys() | SCHEDULES.keys() | THRESHOLDS.keys() | FIRST_LAYER_DENSE <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_trains_its_method_and_inherits_what_it_does_not_change(name):
    base, _, method = name.partition("/")
    config = load(f"recipe={name}")
    before, after = common(load(f"recipe={base}")), common(config)
    changed = {key: after.get(key) for key in before.keys() | after.keys() if before.get(key) != after.get(key)}
    assert changed == CHANGED.get(name, {})

    plan = plan_of(config)
    assert plan.sparsity == SCHEDULES.get(name, Constant(config.sparsity))
    assert config.method.name == ("st3" if method == "finetuned" else method)
    assert config.selection.exclude == (["conv1"] if name in FIRST_LAYER_DENSE else [])
    for key, published in SETTINGS.get(name, SETTINGS.get(method, {})).items():
        value = getattr(config.method, key)
        if isinstance(value, Duration):
            steps = published if isinstance(published, int) else round(published * plan.total_steps)
            assert value.steps(plan.length) == pytest.approx(steps, rel=1e-4), key
        else:
            assert value == published, key
    if method == "str":
        assert config.method.threshold_init == THRESHOLDS[name]


def test_the_authors_file_trains_on_with_fixed_masks_at_the_last_rate():
    plan = plan_of(load("recipe=cifar10_resnet20/finetuned"))
    assert plan.finetune_from == 160 * 351
    assert plan.lr * plan.lr_schedule.value(plan.finetune_from) == pytest.approx(1e-3)
    rates = [plan.lr_schedule.value(351 * epoch) for epoch in range(170)]
    assert rates == pytest.approx([1] * 80 + [0.1] * 40 + [0.01] * 50)


@pytest.mark.parametrize("name", [*BASES, *CHANGED])
def test_another_option_leaves_nothing_of_a_recipe_behind(name):
    options = "optimizer=adamw", "lr_schedule=one_cycle", "schedule=linear", "model=vgg19_bn"
    config, plain = load(f"recipe={name}", *options, "sparsity=0.7", "epochs=30"), load(*options)
    decay = config.optimizer.weight_decay if name.endswith("/str") else 0.05  # it belongs to the thresholds of STR
    assert config.optimizer == replace(plain.optimizer, weight_decay=decay)
    assert (config.lr_schedule, config.schedule) == (plain.lr_schedule, plain.schedule)
    assert replace(config.model, init="default", weights="") == plain.model  # where weights come from is the recipe's
    assert (config.sparsity, config.epochs) == (0.7, 30)


@pytest.mark.parametrize("recipe", ["cifar10_resnet20", "imagenet_resnet50"])
def test_nor_does_an_option_of_the_same_variant(recipe):
    options = "optimizer=sgd", "lr_schedule=cosine", "schedule=cubic"
    config, plain = load(f"recipe={recipe}", *options), load(*options)
    for group in ("optimizer", "lr_schedule", "schedule"):
        assert getattr(config, group) == getattr(plain, group)


def test_what_is_typed_wins_over_the_recipe_wherever_it_stands():
    choices = ["model=vgg19_bn", "dataset=mnist", "method=st3_sigma"]
    values = ["epochs=30", "optimizer.lr=1.5", "schedule.end=80%"]
    recipe = "recipe=imagenet_mobilenet_v1"
    for overrides in ([recipe, *choices, *values], [*values, *choices, recipe]):
        config = compose_config(overrides)
        assert (config.model.name, config.dataset.name, config.method.name) == ("vgg19_bn", "mnist", "st3_sigma")
        assert (config.dataset.classes, config.dataset.image_size) == (10, 28)
        assert (config.epochs, config.optimizer.lr, str(config.schedule.end)) == (30, 1.5, "80%")
        assert (config.optimizer.momentum, config.batch_size) == (0.875, 512)


@pytest.mark.parametrize("name", THRESHOLDS)
def test_the_decay_alone_brings_the_thresholds_of_str_to_where_they_prune(name):
    config = load(f"recipe={name}")

    def final_score(config: Config) -> float:
        """s after training without a loss: SGD with momentum m multiplies it by exp(−Σ lr·decay/(1 − m))."""
        plan = plan_of(config)
        rates = sum(plan.lr * plan.lr_schedule.value(step) for step in range(0, plan.total_steps, 100)) * 100
        exponent = rates * config.optimizer.weight_decay / (1 - config.optimizer.momentum)
        return config.method.threshold_init * math.exp(-exponent)

    assert final_score(config) > -1  # sigmoid(-1) = 0.27 is above nearly all weights
    if name == "imagenet_resnet50/str":
        budget = load("recipe=imagenet_resnet50")
        optimizer = replace(budget.optimizer, weight_decay=config.optimizer.weight_decay)
        elsewhere = replace(budget, method=config.method, optimizer=optimizer)
        assert final_score(elsewhere) == pytest.approx(-35, abs=1)  # as the head of the recipe says
