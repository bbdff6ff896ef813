"""What the settings of a run may be and in which words others are refused; which stored runs may be continued."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
from config_cases import composed, load, refused
from omegaconf import OmegaConf

from st3.config import _at_default, load_config, refuse_other, setting_names, settings_digest
from st3.durations import Duration
from st3.errors import UserError
from st3.settings import hints
from st3.sparsify import METHODS

# Values ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("sparsity", [1.0, -0.1, float("nan"), 90.0]),
        ("epochs", [0, -1]),
        ("batch_size", [0]),
        ("accumulate", [0]),
        ("eval_every", [0]),
        ("log_every", [0]),
        ("label_smoothing", [1.0, -0.1]),
        ("clip_norm", [-1.0]),
        ("ema", [-0.1, 1.0]),
        ("seed", [-1]),
        ("precision", ["fp8"]),
        ("compile", ["maybe"]),
        ("capture", ["maybe"]),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_its_name(name, values):
    for value in values:
        with pytest.raises(UserError, match=rf"^{name}="):
            replace(load(), **{name: value})


@pytest.mark.parametrize(
    "override",
    [
        "epochs=1.5", "epochs=many", "epochs=null", "optimizer.lr=high", "optimizer.weight_decay=-1",
        "lr_schedule.final=-1", "schedule.power=0", "schedule.start=soon", "schedule.end=-3", "schedule.name=cubic",
        "method.name=st4", "method.rescale=maybe", "method.shrink=firm", "method.include=fc", "method.target=bytes",
        "dataset.mean=[a]", "dataset.mean=[0.1,0.2]", "dataset.channels=7", "augmentation.policy=autoaugment",
        "augmentation.mixup=much",
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_in_a_group_is_refused_by_its_name(override):
    assert override.partition("=")[0] in refused(override)


def test_values_at_the_edge_of_what_can_be_are_taken():
    edges = {"sparsity": 0.0, "label_smoothing": 0.0, "ema": 0.0, "clip_norm": 0.0, "seed": 0, "accumulate": 128}
    assert {name: getattr(replace(load(), **edges), name) for name in edges} == edges
    assert replace(load(), sparsity=0.999, ema=0.999).sparsity == 0.999
    config = load("method.include=[fc]", "method.target=flops", "optimizer.weight_decay=0", "run_dir=a/b")
    assert (config.selection.include, config.selection.target) == (["fc"], "flops")
    assert (config.optimizer.weight_decay, config.run_dir) == (0, "a/b")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("operations=0 policy=randaugment", "operations=0 must be at least 1"),
        ("magnitude=31 policy=randaugment", "magnitude=31 lies outside 0..30"),
        ("erasing=1.1", "erasing=1.1 lies outside [0, 1]"),
        ("mixup=-1", "mixup=-1 must not be negative"),
        ("cutmix=-0.5", "cutmix=-0.5 must not be negative"),
        (
            "magnitude=10",
            "magnitude=10 has no effect with augmentation.policy=none: set augmentation.policy=randaugment, or "
            "augmentation.magnitude=9",
        ),
        ("operations=3 policy=trivialaugment", "operations=3 has no effect with augmentation.policy=trivialaugment"),
    ],
)
def test_augmentation_that_cannot_be_or_has_no_effect_is_refused(overrides, says):
    message = refused(*(f"augmentation.{override}" for override in overrides.split()))
    assert message.startswith(f"augmentation.{says}")


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ("method.cost_exponent=-0.5", "method.cost_exponent=-0.5 lies outside [0, 10]: 0 is ST-3's"),
        ("method.cost_exponent=inf", "method.cost_exponent=inf must be a finite number"),
        ("method.cost_exponent=nan", "method.cost_exponent=nan must be a finite number"),
        ("method.cost=bytes", "method.cost=bytes is not known: choose macs or time"),
        ("method.cost=time method.times=t", "method.cost=time has no effect with method.cost_exponent=0"),
        (
            "method.cost=time method.cost_exponent=0.5",
            "method.cost=time needs a file of measured times: method.times=FILE",
        ),
        ("method.target=latency", "method.target=latency needs a file of measured times: method.times=FILE"),
        (
            "method.target=latency method.cost=time method.cost_exponent=0.5",
            "method.target=latency and method.cost=time needs a file of measured times: method.times=FILE",
        ),
        ("method.times=t", "method.times=t has no effect without method.target=latency or method.cost=time"),
        (
            "method=gmp method.times=t",
            "method.times=t has no effect without method.target=latency or method.cost=time",
        ),
        ("method.target=bytes", "method.target=bytes does not exist: choose among weights, flops, latency"),
    ],
)
def test_what_weights_cost_and_where_it_was_measured_belong_together(overrides, says):
    assert refused(*overrides.split()) == says


def test_every_method_may_name_times_for_its_target_and_those_of_st3_for_their_thresholds():
    assert load("method=dense", "method.target=latency", "method.times=a/b.json").selection.times == "a/b.json"
    for method in ("st3", "st3_sigma", "hard_ste", "feather"):
        load(f"method={method}", "method.cost_exponent=0.5", "method.cost=time", "method.times=t")


def test_accumulation_divides_the_batch():
    message = refused("batch_size=128", "accumulate=3")
    assert message == "accumulate=3 does not divide batch_size=128: choose one that does"


def test_a_misspelt_choice_is_answered_with_the_close_one():
    assert refused("precision=bf6") == "precision=bf6 does not exist: did you mean bf16?"
    assert "did you mean st3_sigma" in refused("method.name=st3sigma")
    assert refused("capture=x") == "capture=x does not exist: choose among auto, on, off"


def test_whole_numbers_serve_as_epochs_and_fractions():
    config = load("lr_schedule=multistep", "lr_schedule.milestones=[4,6]", "lr_schedule.warmup=1", "clip_norm=2")
    assert config.lr_schedule.milestones == (Duration(4, "ep"), Duration(6, "ep"))
    assert config.lr_schedule.warmup == Duration(1, "ep")
    assert config.clip_norm == 2.0


def test_on_and_off_are_words_also_where_yaml_reads_them_as_truth():
    node = composed()
    node.compile, node.capture = True, False
    assert (load_config(node).compile, load_config(node).capture) == ("on", "off")
    assert load("compile=off", "capture=on").capture == "on"


def test_dense_reaches_no_sparsity_whatever_is_asked():
    assert load("method=dense", "sparsity=0.9").target_sparsity == 0
    assert load("method=st3", "sparsity=0.8").target_sparsity == 0.8


def test_the_defaults_are_as_the_first_line_of_config_yaml_says():
    config = load()
    assert (config.model.name, config.dataset.name, config.sparsity) == ("resnet20", "fashion_mnist_embedded", 0.9)


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("override", ["typo=1", "training.epochs=3", "model.name2.x=1", "dataset.rooot=1"])
def test_an_unknown_key_is_refused_also_where_nothing_is_close_or_it_is_nested(override):
    assert "is not a setting" in refused(override)


def test_what_the_program_calls_its_parts_is_no_setting():
    assert refused("selection.include=[fc]").startswith("selection is not a setting")


def test_a_value_in_the_place_of_a_group_is_refused():
    node = OmegaConf.to_container(composed())
    with pytest.raises(UserError, match=r"^model=resnet20 is not a group of settings$"):
        load_config(node | {"model": "resnet20"})


def test_an_interpolation_to_nowhere_is_refused():
    assert refused("run_dir='${nowhere}'").startswith("run_dir")


def test_interpolations_are_resolved():
    assert load("run_dir='out/${model.name}'").run_dir == "out/resnet20"


def test_every_setting_of_the_default_run_has_a_name():
    own = set()
    for key, value in load().plain().items():
        own |= {f"{key}.{name}" for name in value} if isinstance(value, dict) else {key}
    groups = "schedule", "optimizer", "lr_schedule", "raw_step"
    of_variants = {name for name in own if name.partition(".")[0] in groups}
    of_variants |= {f"method.{name}" for name in ("name", *hints(METHODS["st3"]))}
    assert set(setting_names()) == own - of_variants


# Stored runs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["st3", "str", "acdc"])
def test_a_configuration_comes_back_from_what_is_stored(method):
    config = load(f"method={method}", "optimizer=adamw", "lr_schedule=multistep", "method.exclude=[fc]", "ema=0.5")
    assert load_config(config.plain()) == config
    assert load_config(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(config.plain())))) == config


def continues(stored, *overrides: str) -> None:
    refuse_other(stored, load(*overrides), Path("run"))


def other(stored, *overrides: str) -> str:
    with pytest.raises(UserError) as caught:
        continues(stored, *overrides)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("run_dir=run holds a run ")
    return message


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("sparsity=0.8", "sparsity=0.9, not 0.8"),
        ("schedule.end=60%", "schedule.end=50%, not 60%"),
        ("optimizer.lr=1e-5", "optimizer.lr=0.1, not 1e-05"),
        ("dataset.mean=[0.5]", "dataset.mean=[0.2851], not [0.5]"),
        ("model.name=vgg11_bn", "model.name=resnet20, not vgg11_bn"),
        ("ema=0.99", "ema=0.0, not 0.99"),
        ("clip_norm=0", "clip_norm=3.0, not 0.0"),
        ("method.exclude=[fc]", "method.exclude=[], not ['fc']"),
        ("method=gmp", "method.allocation=None, not global"),
        ("method.cost_exponent=0.5", "method.cost_exponent=0.0, not 0.5"),
        ("optimizer=adamw", "optimizer.betas=None, not [0.9, 0.999]"),
    ],
)
def test_other_settings_are_refused_and_the_first_is_named(override, says):
    message = other(load().plain(), override)
    assert says in message
    assert message.endswith(": choose another run_dir, or give the same settings to continue it")


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_an_earlier_version_began_continues_unless_the_method_computes_something_else_now(method):
    stored = load(f"method={method}").plain()
    del stored["raw_step"]
    if method in ("rigl", "set", "granet", "topkast", "probmask"):
        assert f"whose method={method} had other rules" in other(stored, f"method={method}")
    else:
        continues(stored, f"method={method}")


def test_where_and_how_it_runs_may_change():
    folder = "dataset=folder", "dataset.augment=crop"
    where = "dataset.root=/data", "dataset.workers=3", "dataset.cache=c", "device=cuda", "run_dir=elsewhere"
    how = "compile=on", "capture=off", "profile=true", "log_every=7", "dry_run=true"
    continues(load(*folder, "dataset.root=here").plain(), *folder, *where, *how)
    mnist = "dataset=mnist", "dataset.root=here"
    continues(load(*mnist, "dataset.download=true").plain(), *mnist, "dataset.download=false")


def test_the_same_value_in_other_words_is_no_other_setting():
    stored = load("schedule.start=0.250", "lr_schedule.warmup=0ep").plain()
    continues(stored, "schedule.start=.25ep", "optimizer.lr=1e-1", "clip_norm=3", "lr_schedule.warmup=0")


def test_the_digest_of_settings_is_another_where_a_run_would_not_be_continued_and_only_there():
    ours = settings_digest(load("dataset=folder", "dataset.root=here"))
    where = "dataset.root=/data", "dataset.workers=3", "device=cuda", "run_dir=elsewhere", "log_every=7", "seed=5"
    assert settings_digest(load("dataset=folder", *where)) == ours
    others = ["epochs=3", "method.theta=0.5", "sparsity=0.8", "precision=fp32", "schedule.power=2", "batch_size=64"]
    found = {settings_digest(load("dataset=folder", other)) for other in others}
    assert len(found - {ours}) == len(others)
    dense = settings_digest(load("method=dense"))
    assert dense == settings_digest(load("method=dense", "schedule=cubic", "sparsity=0.5"))


def test_a_setting_at_its_default_plays_no_part_in_the_digest():
    """As one that is added later."""
    default = load("method=st3", "method.theta=1", "dataset.val_images=0")
    assert settings_digest(default) == settings_digest(load("method=st3"))
    assert {"method.theta", "method.target", "augmentation.mixup", "ema"} <= _at_default(default)
    assert not {"method.name", "dataset.name", "model.name"} & _at_default(default)


def test_the_digest_of_settings_is_what_it_was():
    """Where this fails, no run on record counts any more: a default has changed, or how the digest is made."""
    assert settings_digest(load("method=dense")) == "837818f440ce"


def test_a_setting_that_was_null_is_still_null():
    continues(load("method.theta=null").plain(), "method.theta=null")
    assert "method.theta=None, not 1.0" in other(load("method.theta=null").plain())


def test_a_run_that_was_stored_before_there_was_augmentation_is_continued_without():
    stored = load().plain()
    del stored["augmentation"]
    continues(stored)
    assert "augmentation.mixup=0.0, not 0.2" in other(stored, "augmentation.mixup=0.2")
    continues(load("augmentation=strong").plain(), "augmentation=strong")


def test_a_dense_run_has_no_schedule_to_be_other():
    continues(load("method=dense").plain(), "method=dense", "schedule=cubic")
    continues(load("sparsity=0").plain(), "sparsity=0", "schedule=linear")
    assert "schedule.power=3.0, not 1.0" in other(load().plain(), "schedule=linear")


EARLIER = """
model: {name: resnet20, init: default, depth: null, width: null, dropout: null}
dataset: {name: fashion_mnist_embedded, root: null, classes: 10, channels: 1, image_size: 28, mean: [0.2851],
  std: [0.3534], augment: none, val_images: 0, train_images: 8000, test_images: 2000, workers: 0, download: false,
  decode: cpu, cache: null}
method: {name: st3, shrink: null, rescale: null, gradient: null, allocation: null, every: null, until: null,
  drop: null, regrow: null, regrow_final: null, exponent: null, theta: null, threshold_init: null,
  threshold_decay: null, probability_lr: null, backward: null, decay: null, include: ['*'], exclude: [],
  target: weights}
schedule: {name: ramp, start: 5%, end: 50%, power: 3.0, period: null, last_dense: null}
optimizer: {name: sgd, lr: 0.1, weight_decay: 0.0001, momentum: 0.9, nesterov: false, betas: null, eps: null}
lr_schedule: {name: cosine, warmup: 5%, milestones: null, gamma: null, final: 0.0, initial: null}
sparsity: 0.9
epochs: 5
batch_size: 128
accumulate: 1
label_smoothing: 0.0
clip_norm: 3.0
ema: null
seed: 0
precision: auto
device: auto
compile: auto
capture: auto
profile: false
eval_every: 1
log_every: 50
run_dir: run
dry_run: false
"""
"""config.yaml of the default run as version 0.1.0 wrote it before a variant owned its settings (commit dbc4bd5)."""


def earlier(**settings) -> dict:
    """It with other values, `group__key=value`."""
    stored = OmegaConf.to_container(OmegaConf.create(EARLIER))
    for name, value in settings.items():
        group, _, key = name.rpartition("__")
        (stored[group] if group else stored)[key] = value
    return stored


def test_a_run_stored_with_the_settings_of_all_methods_is_continued_unless_its_method_has_other_rules_now():
    stored = earlier()
    continues(stored)
    assert stored == earlier()
    continues(earlier(method__rescale=False, ema=0.9), "method.rescale=false", "ema=0.9")
    rigl = {"method__name": "rigl", "method__until": "75%", "method__drop": 0.3, "schedule__name": "constant"}
    rigl |= {f"schedule__{key}": None for key in ("start", "end", "power")}
    message = other(earlier(**rigl, method__every="4st"), "method=rigl", "schedule=constant", "method.every=4st")
    assert "whose method=rigl had other rules" in message
    adamw = {"optimizer__name": "adamw", "optimizer__betas": [0.9, 0.999], "optimizer__eps": 1e-8}
    adamw |= {"optimizer__momentum": None, "optimizer__nesterov": None}
    adamw |= {"optimizer__lr": 1e-3, "optimizer__weight_decay": 0.05}
    continues(earlier(**adamw), "optimizer=adamw")
    continues(earlier(method__name="dense"), "method=dense")  # whose schedule was a ramp then


def test_where_a_default_has_changed_the_one_setting_is_named():
    granet = {"method__name": "granet", "method__every": "1000st", "method__until": "100%", "method__regrow": 0.5}
    granet |= {"method__regrow_final": 0.005}
    message = other(earlier(**granet), "method=granet", "method.every=1000st")
    assert "holds a run with schedule.start=5%, not 0: choose another run_dir" in message
    same = other(earlier(**granet), "method=granet", "method.every=1000st", "schedule=cubic")
    assert "whose method=granet had other rules" in same
    assert "method.every=1000st, not 1.6%" in other(earlier(**granet), "method=granet", "schedule=cubic")
    assert "sparsity=0.9, not 0.8" in other(earlier(), "sparsity=0.8")
    assert "method.shrink=soft, not hard" in other(earlier(), "method.shrink=hard")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda stored: stored["method"].update(name="snip"), "method.name=snip does not exist"),
        (lambda stored: stored.update(tempo=3), "tempo is not a setting"),
        (lambda stored: stored["optimizer"].update(lr="high"), "optimizer.lr"),
        (lambda stored: stored["model"].pop("name"), "name"),
        (lambda stored: stored.pop("schedule"), "schedule"),
        (lambda stored: stored.update(dataset=7), "dataset=7 is not a group of settings"),
    ],
)
def test_a_run_that_is_not_understood_is_told_to_be_finished_where_it_began(change, reason):
    stored = copy.deepcopy(load().plain())
    change(stored)
    message = other(stored)
    assert f"that this version cannot continue ({reason}" in message or reason in message.partition("): ")[0]
    assert message.endswith(": finish it with the version that environment.yaml names, or choose another run_dir")
