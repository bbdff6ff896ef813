"""From what is typed to a configuration: which schedule a method gets, any model by its name, words of mistakes."""

from dataclasses import replace
from functools import partial

import pytest
import torch
import torchvision
from command_cases import refused, st3_train
from config_cases import CONFIGS, load, typed_wrong
from hydra._internal.utils import get_args_parser
from hydra.errors import MissingConfigException
from omegaconf import OmegaConf

from st3.compose import OPTIONS, compose_config, in_one_line, spell_out
from st3.config import load_config
from st3.errors import UserError
from st3.sketch import sketch
from st3.sparsify import METHODS, SCHEDULES
from st3.variants import plain

# The schedule of a method ---------------------------------------------------------------------------------------------

CUBIC = {"name": "ramp", "finetune": "0", "start": "5%", "end": "50%", "power": 3.0, "initial": 0.0}
AT_ONCE = CUBIC | {"start": "0"}
CONSTANT = {"name": "constant", "finetune": "0"}
FOLLOWED = {
    "st3": CUBIC, "st3_sigma": CUBIC, "hard_ste": CUBIC, "gmp": CUBIC, "feather": AT_ONCE, "granet": AT_ONCE,
    "probmask": CUBIC | {"start": "14%", "end": "52.5%"}, "str": CONSTANT, "rigl": CONSTANT, "set": CONSTANT,
    "topkast": CONSTANT, "dense": CONSTANT,
    "acdc": {
        "name": "alternating", "finetune": "0", "start": "10%", "period": "5%", "last_dense": "75%", "end": "85%",
    },
}  # fmt: skip
"""As its authors have it."""


def test_every_method_is_here():
    assert FOLLOWED.keys() == METHODS.keys()


@pytest.mark.parametrize("method", FOLLOWED)
def test_a_method_alone_brings_the_schedule_that_belongs_to_it(method):
    config = load(f"method={method}")
    assert config.method == METHODS[method]()
    assert plain(config.schedule) == FOLLOWED[method]
    assert sketch(config).plan.target_sparsity == (0 if method == "dense" else 0.9)


@pytest.mark.parametrize(
    ("method", "schedule", "expected"),
    [
        ("gmp", "cubic", CUBIC),  # which it would have brought itself
        ("feather", "linear", CUBIC | {"power": 1.0}),
        ("acdc", "constant", CONSTANT),
    ],
)
def test_a_schedule_that_is_typed_is_kept_wherever_it_stands(method, schedule, expected):
    words = [f"method={method}", f"schedule={schedule}"]
    for overrides in (words, words[::-1]):
        config = compose_config(overrides)
        assert (config.method, plain(config.schedule)) == (METHODS[method](), expected)
        sketch(config)


def test_settings_of_the_schedule_are_those_of_the_one_that_the_method_brings():
    config = compose_config(["schedule.end=60%", "method=feather"])
    assert plain(config.schedule) == AT_ONCE | {"end": "60%"}
    assert typed_wrong("method=rigl", "schedule.end=60%").startswith("schedule.end is a setting of schedule=")


@pytest.mark.parametrize(
    ("method", "schedule", "instead"),
    [
        *((method, "ramp", "schedule=constant") for method in ("rigl", "set", "topkast", "str")),
        ("rigl", "alternating", "schedule=constant"),
        ("acdc", "ramp", "schedule=acdc"),
        ("granet", "alternating", "schedule=cubic"),
        ("probmask", "alternating", "schedule=probmask"),
    ],
)
def test_a_schedule_that_the_method_cannot_follow_is_refused(method, schedule, instead):
    with pytest.raises(UserError) as caught:
        sketch(replace(load(), method=METHODS[method](), schedule=SCHEDULES[schedule]()))
    message = str(caught.value)
    assert message.startswith("this method ")
    assert message.endswith(f": {instead}")
    assert "\n" not in message


def test_the_schedule_of_a_recipe_wins_over_the_methods_own_and_gives_way_to_what_is_typed():
    of_recipe = CUBIC | {"start": "3.125%"}
    for overrides in (["recipe=cifar10_resnet20", "method=granet"], ["method=granet", "recipe=cifar10_resnet20"]):
        config = compose_config(overrides)
        assert (config.method, plain(config.schedule)) == (METHODS["granet"](), of_recipe)
    assert plain(load("recipe=cifar10_resnet20/gmp").schedule) == of_recipe
    assert plain(load("recipe=imagenet_resnet50/granet").schedule) == AT_ONCE | {"end": "30%"}
    assert plain(load("schedule=linear", "recipe=cifar10_resnet20/gmp").schedule) == CUBIC | {"power": 1.0}
    with pytest.raises(UserError, match=r"follows no ramp: schedule=constant$"):
        sketch(load("recipe=cifar10_resnet20", "method=rigl"))
    sketch(load("recipe=cifar10_resnet20", "method=rigl", "schedule=constant"))


# Any model by its name ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [
        ("model=densenet121", ["model=resnet20", "model.name=densenet121"]),
        ("model=timm/resnet18d", ["model=resnet20", "model.name=timm/resnet18d"]),
        ("model=densenet121,vit_b_32", ["model=resnet20", "model.name=densenet121,vit_b_32"]),
        ("model=wrn34_2", ["model=wrn34_2"]),
        ("model=resnet20,wrn34_2", ["model=resnet20,wrn34_2"]),
        ("model=densenet121,resnet20", ["model=densenet121,resnet20"]),
        ("model=null", ["model=null"]),
        ("model.name=densenet121", ["model.name=densenet121"]),
        ("+model=densenet121", ["+model=densenet121"]),
    ],
)
def test_a_name_without_a_file_is_spelled_out(typed, spelled):
    assert spell_out(["-m", typed, "seed=3"]) == ["-m", *spelled, "seed=3"]


def any_model(name: str, untouched) -> None:
    run = sketch(compose_config([f"model={name}", "dataset=cifar10", "dataset.image_size=32"]))
    assert run.config.model.name == name
    with torch.device("meta"):
        expected = [(key, p.shape) for key, p in untouched().named_parameters()]
    assert [(key, p.shape) for key, p in run.model.named_parameters()] == expected


def test_any_model_is_there_as_typed():
    any_model("squeezenet1_1", partial(torchvision.models.squeezenet1_1, num_classes=10))
    any_model("vit_b_16", partial(torchvision.models.vit_b_16, num_classes=10, image_size=32))


def test_any_model_of_timm_is_there_as_typed():
    timm = pytest.importorskip("timm")
    any_model("timm/resnet18d", partial(timm.create_model, "resnet18d", num_classes=10))


@pytest.mark.slow
def test_a_sweep_over_models_without_files_runs_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = st3_train("-m", "model=squeezenet1_0,squeezenet1_1", "dataset=cifar10", "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    said = [line.split()[1] for line in answer.out.splitlines() if line.startswith("model ")]
    assert said == ["squeezenet1_0,", "squeezenet1_1,"]


def test_a_sweep_over_models_with_and_without_files_says_how_to_be_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    message = refused("-m", "model=densenet121,resnet20", "dry_run=true")
    assert message == "model=densenet121 has no file of its own: sweep over model.name"
    answer = st3_train("-m", "model.name=squeezenet1_1,resnet20", "dataset=cifar10", "dry_run=true")
    assert (answer.code, answer.out.count("\nmodel ")) == (0, 2)


# What is printed ------------------------------------------------------------------------------------------------------

OPTIONAL = {
    "run_dir", "method.theta", "method.threshold_decay", "method.times",
    *(f"dataset.{key}" for key in ("root", "cache")),
}  # fmt: skip
"""Settings for which null means something."""


def flat(node: dict) -> dict:
    found = {}
    for key, value in node.items():
        found |= {f"{key}.{name}": each for name, each in value.items()} if isinstance(value, dict) else {key: value}
    return found


@pytest.mark.parametrize(
    "words",
    ["method=feather clip_norm=0", "recipe=imagenet_resnet50/rigl",
     "method=acdc optimizer=adamw lr_schedule=multistep model=wide_resnet"],
)  # fmt: skip
def test_cfg_job_prints_the_values_that_the_run_will_have(words):
    answer = st3_train("--cfg", "job", *words.split())
    assert (answer.code, answer.err) == (0, "")
    printed = OmegaConf.to_container(OmegaConf.create(answer.out))
    resolved = flat(compose_config(words.split()).plain())
    assert flat(printed).items() <= resolved.items()
    absent = resolved.keys() - flat(printed).keys()
    assert {name for name in absent if resolved[name] is not None} == set()
    assert absent <= {"model.depth", "model.width", "model.dropout"}
    assert {name for name, value in flat(printed).items() if value is None} <= OPTIONAL
    assert load_config(printed) == compose_config(words.split())


def test_no_file_says_null_where_another_option_has_a_value():
    common = OmegaConf.to_container(OmegaConf.load(CONFIGS / "config.yaml"))
    del common["defaults"], common["hydra"]
    counted_in_the_folder = {"dataset.classes", "dataset.train_images", "dataset.test_images"}
    assert {name for name, value in flat(common).items() if value is None} <= OPTIONAL | counted_in_the_folder
    for path in CONFIGS.rglob("*/*.yaml"):
        group = path.relative_to(CONFIGS).parts[0]
        node = OmegaConf.to_container(OmegaConf.load(path))
        node.pop("defaults", None)
        nulls = {name for name, value in flat(node if group == "recipe" else {group: node}).items() if value is None}
        assert nulls <= OPTIONAL | (counted_in_the_folder if group == "dataset" else set()), path


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ("epoch=3", "epoch is not a setting: did you mean epochs?"),
        ("lr=0.1", "lr is not a setting: did you mean optimizer.lr?"),
        ("typo=1", "typo is not a setting: st3-train --cfg job prints them all"),
        ("+typo=1", "typo is not a setting: st3-train --cfg job prints them all"),
        ("+optimizer.momentun=1", "optimizer.momentun is not a setting: did you mean optimizer.momentum"),
        ("method=gmp method.drop=0.3", "method.drop is a setting of method=rigl or set, not of the method that is"),
        ("+method.drop=0.3", "method.drop is a setting of method=rigl or set, not of the method that is chosen"),
        ("method=gmp method.drp=0.3", "method.drp is not a setting: did you mean method.drop"),
        ("model.depth=28", "model.depth is a setting of model=wide_resnet, not of the model that is chosen"),
        ("lr_schedule.gamma=0.1", "lr_schedule.gamma is a setting of lr_schedule=multistep, not of"),
        ("method=st4", "method=st4 does not exist: did you mean str, st3, set?"),
        ("recipe=cifar10", "recipe=cifar10 does not exist: did you mean"),
        (
            "recipe=cifar10_resnet20/rigle",
            "recipe=cifar10_resnet20/rigle does not exist",
        ),
        ("sparsity==1", "'sparsity==1': what follows the = is no value"),
        ("sparsity=abc", "sparsity=abc must be a number"),
    ],
)
def test_what_is_typed_wrong_is_answered_in_one_line(typed, says):
    assert typed_wrong(*typed.split()).startswith(says)


def test_a_launcher_that_is_not_installed_is_named():
    error = MissingConfigException("…", missing_cfg_file="hydra/launcher/submitit_slurm", options=["basic"])
    assert in_one_line(error) == "hydra/launcher=submitit_slurm is not installed: pip install hydra-submitit-launcher"


@pytest.mark.parametrize("typed", ["~sparsity", "~model"])
def test_a_setting_that_is_taken_away_is_asked_for(typed):
    assert typed[1:] in typed_wrong(typed)


def test_a_setting_that_all_methods_of_a_sweep_have_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = st3_train("-m", "method=rigl,set", "method.every=7st", "dry_run=true")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.count("every 7st") == 2


def test_the_dropout_of_a_wide_resnet_that_is_named_by_its_size():
    assert compose_config(["model=wrn28_10", "model.dropout=0.3"]).model.dropout == 0.3


def test_the_options_are_those_of_hydra_and_another_is_refused_in_our_words(here):
    assert {name for each in get_args_parser()._actions for name in each.option_strings} == OPTIONS
    for word in ("--nothing", "--epochs=5", "-x", "--epochs"):
        assert refused(word, "5").startswith(f"{word} is no option: a setting is typed as SETTING=VALUE")
