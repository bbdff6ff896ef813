"""What the schema refuses and in which words; that every YAML file composes; that recipes say what was published."""

import copy
import functools
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from st3.build import make_plan, read_facts
from st3.config import Config, load_config
from st3.errors import UserError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
OPTIONS = sorted(f"{path.parent.name}={path.stem}" for path in CONFIGS.glob("*/*.yaml"))


@functools.cache
def by_hydra(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", list(overrides))


def composed(*overrides: str):
    """As `by_hydra`, which takes long: options are composed once, values then set upon them, as Hydra does."""
    options = [o for o in overrides if o.partition("=")[0] in GROUPS]
    config = copy.deepcopy(by_hydra(*options))
    OmegaConf.set_struct(config, False)
    for override in OverridesParser.create().parse_overrides([o for o in overrides if o not in options]):
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def load(*overrides: str) -> Config:
    return load_config(composed(*overrides))


def refused(*overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        load(*overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_on_and_off_are_words_also_where_yaml_reads_them_as_truth():
    config = composed()
    config.compile, config.capture = True, False
    assert (load_config(config).compile, load_config(config).capture) == ("on", "off")
    assert load("compile=off", "capture=on").capture == "on"


# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    [
        "sparsity=1.0", "sparsity=-0.1", "sparsity=nan", "sparsity=90", "epochs=0", "batch_size=0", "accumulate=0",
        "eval_every=0", "log_every=0", "label_smoothing=1.0", "label_smoothing=-0.1", "clip_norm=0",
        "clip_norm=-1.0", "ema=0.0", "ema=1.0", "seed=-1", "precision=fp8", "optimizer.lr=0", "optimizer.lr=nan",
        "optimizer.weight_decay=-1", "optimizer.momentum=-1", "optimizer.lr=inf", "lr_schedule.final=-1",
        "schedule.power=0", "dataset.val_images=-5", "dataset.channels=7", "dataset.mean=[0.1,0.2]",
        "dataset.std=[0]", "dataset.workers=-1", "dataset.image_size=0", "method.target=bytes", "schedule.name=cubic",
        "optimizer.name=lion", "lr_schedule.name=step", "method.name=st4", "epochs=1.5", "epochs=many", "epochs=null",
        "optimizer.lr=high", "compile=maybe", "capture=maybe", "method.include=fc", "dataset.mean=[a]",
    ],
)  # fmt: skip
def test_a_value_that_cannot_be_is_refused_by_its_name(override):
    assert override.partition("=")[0] in refused(override)


@pytest.mark.parametrize(
    "override",
    ["sparsity=0", "sparsity=0.999", "label_smoothing=0", "ema=0.999", "clip_norm=null", "seed=0", "precision=bf16",
     "optimizer.weight_decay=0", "accumulate=128", "run_dir=a/b", "method.include=[fc]", "method.target=flops"],
)  # fmt: skip
def test_a_value_at_the_edge_of_what_can_be_is_taken(override):
    key, _, value = override.partition("=")
    config = load(override)
    assert OmegaConf.select(OmegaConf.structured(config), key) == OmegaConf.create(f"x: {value}").x


def test_accumulation_divides_the_batch():
    assert "accumulate=3" in refused("batch_size=128", "accumulate=3")


def test_adamw_has_two_betas():
    assert "optimizer.betas=[0.9,0.999]" in refused("optimizer=adamw", "optimizer.betas=[0.9]")


def test_a_misspelt_choice_is_answered_with_the_close_one():
    assert "did you mean bf16" in refused("precision=bf6")
    assert "did you mean st3_sigma" in refused("method.name=st3sigma")


def test_whole_numbers_serve_as_durations_and_fractions():
    config = load("lr_schedule=multistep", "lr_schedule.milestones=[4,6]", "lr_schedule.warmup=1", "clip_norm=2")
    assert config.lr_schedule.milestones == ["4", "6"]
    assert config.lr_schedule.warmup == "1"
    assert config.clip_norm == 2.0


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "named", "meant"),
    [
        ("+sparsty=0.5", "sparsty", "sparsity"),
        ("+batchsize=3", "batchsize", "batch_size"),
        ("+optimizer.weigth_decay=0", "optimizer.weigth_decay", "optimizer.weight_decay"),
        ("+lr_schedule.milestone=[1]", "lr_schedule.milestone", "lr_schedule.milestones"),
        ("+model.droput=0.1", "model.droput", "model.dropout"),
        ("+weight_decay=0", "weight_decay", "optimizer.weight_decay"),
    ],
)
def test_an_unknown_key_is_refused_and_the_close_one_named(override, named, meant):
    message = refused(override)
    assert message.startswith(f"{named} is not a setting")
    assert meant in message


@pytest.mark.parametrize("override", ["+typo=1", "+training.epochs=3", "+model.name2.x=1", "+dataset={rooot: 1}"])
def test_an_unknown_key_is_refused_also_where_nothing_is_close_or_it_is_nested(override):
    assert "is not a setting" in refused(override)


def test_a_value_in_the_place_of_a_group_is_refused():
    plain = OmegaConf.to_container(composed())
    with pytest.raises(UserError, match="model=resnet20"):
        load_config(OmegaConf.create(plain | {"model": "resnet20"}))


def test_an_interpolation_to_nowhere_is_refused():
    assert refused("run_dir='${nowhere}'").startswith("run_dir")


def test_interpolations_are_resolved():
    assert load("run_dir='out/${model.name}'").run_dir == "out/resnet20"


# Settings of each option ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "setting"),
    [
        (("schedule=constant", "schedule.start=1"), "schedule.start=1"),
        (("schedule=constant", "schedule.power=3"), "schedule.power=3"),
        (("optimizer=sgd", "optimizer.betas=[0.9,0.99]"), "optimizer.betas="),
        (("optimizer=sgd", "optimizer.eps=1e-8"), "optimizer.eps="),
        (("optimizer=adamw", "optimizer.momentum=0.9"), "optimizer.momentum=0.9"),
        (("optimizer=adamw", "optimizer.nesterov=false"), "optimizer.nesterov=False"),
        (("lr_schedule=cosine", "lr_schedule.gamma=0.1"), "lr_schedule.gamma=0.1"),
        (("lr_schedule=cosine", "lr_schedule.milestones=[4]"), "lr_schedule.milestones="),
        (("lr_schedule=constant", "lr_schedule.final=0"), "lr_schedule.final=0"),
        (("lr_schedule=multistep", "lr_schedule.initial=0.1"), "lr_schedule.initial=0.1"),
        (("method=dense", "method.shrink=soft"), "method.shrink=soft"),
        (("method=dense", "method.rescale=false"), "method.rescale=False"),
        (("method=dense", "method.gradient=masked"), "method.gradient=masked"),
    ],
)
def test_a_setting_without_effect_is_refused(overrides, setting):
    message = refused(*overrides)
    assert setting in message
    group, _, option = overrides[0].partition("=")
    assert f"no effect with {group}.name={option}" in message


@pytest.mark.parametrize(
    ("group", "key"),
    [
        ("schedule=cubic", "start"),
        ("schedule=cubic", "end"),
        ("schedule=linear", "power"),
        ("optimizer=sgd", "momentum"),
        ("optimizer=sgd", "nesterov"),
        ("optimizer=adamw", "betas"),
        ("optimizer=adamw", "eps"),
        ("lr_schedule=multistep", "milestones"),
        ("lr_schedule=multistep", "gamma"),
        ("lr_schedule=cosine", "final"),
        ("lr_schedule=one_cycle", "final"),
        ("lr_schedule=one_cycle", "initial"),
    ],
)
def test_a_setting_that_is_needed_is_asked_for(group, key):
    setting = f"{group.partition('=')[0]}.{key}"
    assert f"needs {setting}=" in refused(group, f"{setting}=null")


def test_dense_reaches_no_sparsity_whatever_is_asked():
    assert load("method=dense", "sparsity=0.9").target_sparsity == 0
    assert load("method=st3", "sparsity=0.8").target_sparsity == 0.8


# The files ------------------------------------------------------------------------------------------------------------


def test_the_files_are_found():
    assert len(OPTIONS) > 40


def test_the_default_is_as_the_first_line_of_config_yaml_says():
    config = load()
    assert (config.model.name, config.dataset.name, config.sparsity) == ("resnet20", "fashion_mnist_embedded", 0.9)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_to_a_valid_configuration(option):
    group, _, name = option.partition("=")
    config = load(option)
    if group == "recipe":
        return
    file = OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    assert set(file) == set(OmegaConf.structured(getattr(config, group)))  # a file says every setting of its group


IMAGENET = {
    "epochs": 100, "batch": 512, "steps": 2502, "ramp": (5, 50), "lr": 0.2, "momentum": 0.875, "decay": 5e-5,
    "smoothing": 0.1, "val": 0, "classes": 1000, "augment": "random_resized_crop", "size": 224,
}  # fmt: skip
CIFAR = {
    "epochs": 160, "batch": 128, "steps": 351, "ramp": (5, 80), "lr": 0.1, "momentum": 0.9, "decay": 1e-4,
    "smoothing": 0, "val": 5000, "classes": 10, "augment": "crop_flip", "size": 32,
}  # fmt: skip
PUBLISHED = {
    "imagenet_resnet50": IMAGENET | {"model": "resnet50", "dropout": None},
    "imagenet_mobilenet_v1": IMAGENET | {"model": "mobilenet_v1", "dropout": None},
    "cifar10_resnet20": CIFAR | {"model": "resnet20", "dropout": None},
    "cifar10_vgg16": CIFAR | {"model": "vgg16_bn", "dropout": None},
    "cifar100_wrn34_2": CIFAR | {"model": "wrn34_2", "dropout": 0.2, "classes": 100},
}


def test_every_recipe_is_checked_here():
    assert sorted(PUBLISHED) == sorted(path.stem for path in (CONFIGS / "recipe").glob("*.yaml"))


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_a_recipe_resolves_to_the_published_settings(recipe):
    want, config = PUBLISHED[recipe], load(f"recipe={recipe}")
    facts = read_facts(config)
    plan = make_plan(config, facts)
    per_epoch = want["steps"]  # whole batches of the training images
    assert (config.model.name, config.model.dropout) == (want["model"], want["dropout"])
    assert (config.dataset.augment, config.dataset.image_size) == (want["augment"], want["size"])
    assert (config.method.name, config.schedule.power) == ("st3", 3)
    assert (facts.classes, facts.val_images) == (want["classes"], want["val"])
    assert (plan.epochs, config.batch_size, plan.steps_per_epoch) == (want["epochs"], want["batch"], per_epoch)
    assert (plan.sparsity.start, plan.sparsity.end) == tuple(per_epoch * epoch for epoch in want["ramp"])
    assert (config.optimizer.name, plan.lr, config.optimizer.momentum) == ("sgd", want["lr"], want["momentum"])
    assert (config.optimizer.nesterov, config.optimizer.weight_decay) == (False, want["decay"])
    assert (plan.clip_norm, plan.label_smoothing) == (3.0, want["smoothing"])


@pytest.mark.parametrize("recipe", [name for name in PUBLISHED if name.startswith("cifar")])
def test_the_cifar_rate_falls_tenfold_at_epochs_80_and_120(recipe):
    config = load(f"recipe={recipe}")
    plan = make_plan(config, read_facts(config))
    epochs = [plan.lr * plan.lr_schedule.value(351 * epoch) for epoch in range(160)]
    assert epochs == pytest.approx([0.1] * 80 + [0.01] * 40 + [0.001] * 40)
    assert plan.lr_schedule.value(351 * 80 - 1) == 1


@pytest.mark.parametrize("recipe", [name for name in PUBLISHED if name.startswith("imagenet")])
def test_the_imagenet_rate_warms_up_for_5_epochs_and_falls_to_zero(recipe):
    config = load(f"recipe={recipe}")
    plan = make_plan(config, read_facts(config))
    value = plan.lr_schedule.value
    assert value(0) == pytest.approx(1 / (5 * 2502))
    assert value(5 * 2502 - 1) == 1 > value(5 * 2502 + 1)
    assert value((5 * 2502 + 100 * 2502) // 2) == pytest.approx(0.5)
    assert value(100 * 2502 - 1) < 1e-6


@pytest.mark.parametrize("recipe", ["imagenet_mobilenet_v1", "cifar100_wrn34_2"])
def test_a_choice_on_the_command_line_wins_over_the_recipe_wherever_it_stands(recipe):
    choices = ["model=vgg19_bn", "dataset=mnist", "method=st3_sigma"]
    for overrides in ([f"recipe={recipe}", *choices], [*choices, f"recipe={recipe}"]):
        config = by_hydra(*overrides)
        assert (config.model.name, config.dataset.name, config.method.name) == ("vgg19_bn", "mnist", "st3_sigma")
        assert (config.dataset.classes, config.dataset.image_size) == (10, 28)
        assert config.epochs == PUBLISHED[recipe]["epochs"]


def test_a_value_on_the_command_line_wins_over_the_recipe():
    config = load_config(by_hydra("recipe=imagenet_resnet50", "epochs=30", "optimizer.lr=1.5", "schedule.end=80%"))
    assert (config.epochs, config.optimizer.lr, config.schedule.end) == (30, 1.5, "80%")
    assert config.optimizer.momentum == 0.875


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_another_model_leaves_no_setting_of_the_recipes_model_behind(recipe):
    model = load(f"recipe={recipe}", "model=vgg19_bn").model
    assert (model.depth, model.width, model.dropout) == (None, None, None)


@pytest.mark.parametrize("recipe", PUBLISHED)
def test_the_dense_baseline_of_a_recipe_needs_one_word_only(recipe):
    config = load(f"recipe={recipe}", "method=dense")
    assert make_plan(config, read_facts(config)).target_sparsity == 0


@pytest.mark.parametrize(
    "recipe", ["cifar10_resnet20", "cifar100_wrn34_2", "imagenet_resnet50", "imagenet_mobilenet_v1"]
)
@pytest.mark.parametrize("group", ["optimizer", "lr_schedule", "schedule"])
def test_a_recipe_leaves_nothing_behind_when_another_option_is_chosen(recipe, group):
    for option in OPTIONS:
        if option.startswith(f"{group}="):
            chosen = getattr(load(f"recipe={recipe}", option), group)
            assert chosen == getattr(load(option), group), option
