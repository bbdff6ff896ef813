"""From a YAML node to a variant's settings and back, the files that hold them, and what is said of a wrong key."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar, Literal

import pytest
from config_cases import CONFIGS
from omegaconf import OmegaConf

from st3.config import setting_names
from st3.durations import Duration
from st3.errors import UserError
from st3.models.registry import OWN
from st3.settings import Settings
from st3.variants import VARIANTS, build, plain, to_yaml, unknown_choice, unknown_setting

EACH = [(group, cls) for group, variants in VARIANTS.items() for cls in variants.values()]
ids = [f"{group}={cls.name}" for group, cls in EACH]

SETTINGS = sorted({f"{group}.{field.name}" for group, cls in EACH for field in fields(cls)})


# Nodes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("group", "cls"), EACH, ids=ids)
def test_the_settings_come_back_from_their_node_and_from_yaml(group, cls):
    node = plain(cls())
    assert node["name"] == cls.name
    by_yaml = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(OmegaConf.create(node))))
    for given in (node, by_yaml, {"name": cls.name}):  # what is not said has its default
        settings = build(group, given)
        assert type(settings) is cls
        assert plain(settings) == node


def test_values_are_what_their_field_says_however_yaml_reads_them():
    schedule = build("schedule", {"name": "ramp", "start": 3, "end": "7.5ep", "power": 2})
    assert (schedule.start, schedule.end) == (Duration(3, "ep"), Duration(7.5, "ep"))
    assert (type(schedule.power), schedule.power) == (float, 2.0)
    rates = build("lr_schedule", {"name": "multistep", "milestones": [3, "50%", "200st"]})
    assert rates.milestones == (Duration(3, "ep"), Duration(50, "%"), Duration(200, "st"))
    assert build("optimizer", {"name": "adamw", "betas": [0, "0.5"]}).betas == (0.0, 0.5)
    assert build("method", {"name": "st3", "rescale": "off"}).rescale is False
    assert build("method", {"name": "str", "threshold_decay": None}).threshold_decay is None


@pytest.mark.parametrize(
    ("group", "node"),
    [
        ("optimizer", {"name": "sgd", "lr": "high"}),
        ("optimizer", {"name": "sgd", "lr": None}),
        ("optimizer", {"name": "adamw", "betas": 0.9}),
        ("optimizer", {"name": "adamw", "betas": ["a"]}),
        ("method", {"name": "st3", "rescale": "maybe"}),
        ("method", {"name": "gmp", "every": None}),
        ("method", {"name": "gmp", "every": [1]}),
        ("lr_schedule", {"name": "multistep", "milestones": "50%"}),
    ],
)
def test_a_value_of_the_wrong_type_is_named_with_its_group(group, node):
    *_, key = node
    with pytest.raises(UserError, match=rf"^{group}\.{key}=.* must be "):
        build(group, node)


@pytest.mark.parametrize(
    ("group", "node", "says"),
    [
        ("method", {"name": "st4"}, "method.name=st4 does not exist: did you mean str, st3, set?"),
        ("optimizer", {"name": "lion"}, "optimizer.name=lion does not exist: choose among sgd, adamw"),
        ("schedule", {}, "schedule.name=None does not exist: choose among ramp, constant, alternating"),
        ("method", {"name": "st3", "name2": 1}, "method.name2 is not a setting"),
        ("method", {"name": "gmp", "drop": 0.3}, "method.drop is a setting of method=rigl or set, not of the method"),
    ],
)
def test_a_name_or_key_that_does_not_exist_is_refused(group, node, says):
    with pytest.raises(UserError) as caught:
        build(group, node)
    assert says in str(caught.value)


# What is said of a wrong key ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("sparsty", "sparsity"),
        ("batchsize", "batch_size"),
        ("epoch", "epochs"),
        ("optimizer.weigth_decay", "optimizer.weight_decay"),
        ("lr_schedule.milestone", "lr_schedule.milestones"),
        ("model.droput", "model.dropout"),
        ("method.drp", "method.drop"),
        ("dataset.val_image", "dataset.val_images"),
    ],
)
def test_of_a_near_miss_the_closest_settings_are_named(key, meant):
    message = unknown_setting(key, setting_names())
    assert message.startswith(f"{key} is not a setting: did you mean {meant}")
    assert message.endswith("?")


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("lr", "optimizer.lr"),
        ("weight_decay", "optimizer.weight_decay"),
        ("drop", "method.drop"),
        ("schedule.warmup", "lr_schedule.warmup"),
        ("optimizer.epochs", "epochs"),
        ("workers", "dataset.workers"),
        ("exclude", "method.exclude"),
    ],
)
def test_of_a_setting_without_its_group_or_in_another_the_place_is_named(key, meant):
    assert unknown_setting(key, setting_names()) == f"{key} is not a setting: did you mean {meant}?"


def test_of_what_is_like_nothing_the_way_to_see_all_is_named():
    message = unknown_setting("zzzzzz", setting_names())
    assert message == "zzzzzz is not a setting: st3-train --cfg job prints them all"


def test_of_a_setting_of_other_variants_these_are_named():
    assert unknown_setting("method.drop") == (
        "method.drop is a setting of method=rigl or set, not of the method that is chosen"
    )
    assert "method=gmp, rigl, set or granet, not" in unknown_setting("method.every")
    assert "optimizer=adamw, not" in unknown_setting("optimizer.betas")
    assert "model=wide_resnet, not of the model that is chosen" in unknown_setting("model.depth", setting_names())


def test_the_variants_that_are_named_can_be_typed():
    for key in SETTINGS:
        group = key.partition(".")[0]
        owners = unknown_setting(key).partition(f"{group}=")[2].partition(", not of")[0]
        for owner in owners.replace(" or ", ", ").split(", "):
            assert (CONFIGS / group / f"{owner}.yaml").exists(), (key, owner)


def test_nothing_ever_suggests_what_was_just_refused():
    everywhere = setting_names()
    options = {f"model.{option}" for entry in OWN.values() for option in entry.options}
    of_variants = {*SETTINGS, *options}
    groups = ["", *(f"{group}." for group in ("model", "dataset", *VARIANTS))]
    keys = {name.rpartition(".")[2] for name in [*SETTINGS, *everywhere]}
    refused = {f"{group}{key}" for group in groups for key in keys} - (set(everywhere) - of_variants)
    mistyped = {name[:-1] for name in [*SETTINGS, *everywhere]} - set(everywhere)
    for name in refused | mistyped:
        message = unknown_setting(name, everywhere)
        suggested = message.partition("did you mean ")[2].rstrip("?").split(", ")
        assert name not in suggested
        if name in of_variants:
            assert " is a setting of " in message
        elif name in refused:
            assert suggested[0], "the same key is elsewhere"
    for name in [*SETTINGS, *everywhere]:
        assert name in unknown_setting(f"{name}x", everywhere)


def test_a_choice_that_does_not_exist_is_answered_with_the_close_ones_or_all():
    assert unknown_choice("precision", "bf6", ("auto", "bf16")) == "precision=bf6 does not exist: did you mean bf16?"
    assert unknown_choice("a", "zzz", ("b", "c")) == "a=zzz does not exist: choose among b, c"


# The files ------------------------------------------------------------------------------------------------------------

FILES = sorted(path for group in VARIANTS for path in (CONFIGS / group).glob("*.yaml"))
OF_VARIANTS = {CONFIGS / group / f"{cls.option or cls.name}.yaml": (group, cls) for group, cls in EACH}
PRESETS = [path for path in FILES if path not in OF_VARIANTS]
OPTIONAL = {"feather.theta", "str.threshold_decay"}
"""Settings for which null means something: a rule of the paper, the decay of the weights."""


def settings_in(path: Path) -> dict:
    node = OmegaConf.to_container(OmegaConf.load(path))
    node.pop("defaults", None)
    return node


@pytest.mark.parametrize("path", OF_VARIANTS, ids=ids)
def test_the_file_of_a_variant_is_written_from_its_dataclass(path):
    _, cls = OF_VARIANTS[path]
    text = path.read_text(encoding="utf-8")
    assert text == to_yaml(cls), "python -m st3.variants writes it"
    node = settings_in(path)
    assert node == plain(cls())
    assert {f"{cls.name}.{key}" for key, value in node.items() if value is None} <= OPTIONAL
    assert max(map(len, text.partition("\nname:")[0].splitlines())) <= 120


def base_of(preset: Path) -> tuple[str, type[Settings]]:
    (base,) = OmegaConf.load(preset)["defaults"]
    return OF_VARIANTS[preset.with_name(f"{base}.yaml")]


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_a_preset_changes_settings_of_its_variant_to_other_values_and_says_what_for(path):
    group, cls = base_of(path)
    node, defaults = settings_in(path), plain(cls())
    assert node
    for key, value in node.items():
        assert key in defaults.keys() - {"name"}
        assert value is not None
        assert plain(build(group, {"name": cls.name, key: value}))[key] != defaults[key]
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_every_group_has_a_file_for_each_variant_and_presets():
    assert OF_VARIANTS.keys() <= set(FILES)
    assert {path.parent.name for path in PRESETS} == set(VARIANTS) - {"raw_step"}


@dataclass(frozen=True, kw_only=True)
class Made(Settings):
    """A variant that was made up here
    on two lines.

    More than its file says.
    """

    group: ClassVar[str] = "method"
    name: ClassVar[str] = "made"
    follows: ClassVar[str] = "linear"

    often: Duration = Duration(1.5, "%")
    """How
    often."""
    mode: Literal["a", "b"] = "a"
    steps: tuple[Duration, ...] = (Duration(2, "ep"), Duration(0))
    """When."""
    flag: bool = True
    limit: float | None = None
    """None: no limit."""


def test_the_yaml_of_a_variant_says_what_its_docstrings_say():
    assert to_yaml(Made) == (
        "# A variant that was made up here on two lines.\n"
        "defaults:\n"
        "  - override /schedule@_global_.schedule: linear\n"
        "\n"
        "name: made\n"
        "often: 1.5%  # How often.\n"
        "mode: a\n"
        "steps: [2ep, 0]  # When.\n"
        "flag: true\n"
        "limit: null  # None: no limit.\n"
    )
