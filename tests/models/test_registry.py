"""From a name and its options to a network, and every message on the way."""

from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml
from model_cases import layers, meta, parameters
from torch import nn

from st3.errors import UserError
from st3.models import ModelConfig, build_model, model_names

OWN = [f"resnet{depth}" for depth in (20, 32, 44, 56, 110)]
OWN += [f"vgg{depth}_bn" for depth in (11, 13, 16, 19)]
OWN += ["wide_resnet", "wrn34_2", "mobilenet_v1", "vit_tiny"]
CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "model").glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OWN)
def test_own_models_map_small_images_to_logits(name, channels, size):
    model = meta(name, classes=7, channels=channels, image_size=size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", [name for name in OWN if name != "vit_tiny"])
def test_own_models_are_made_of_plain_layers(name):
    assert {type(layer) for layer in layers(meta(name, classes=10))} == {nn.Conv2d, nn.Linear}


@pytest.mark.parametrize("name", ["resnet20", "wrn10_1", "vgg11_bn", "mobilenet_v1", "vit_tiny"])
def test_every_parameter_gets_a_finite_gradient(name):
    model = build_model(name, classes=3, channels=1, image_size=28)
    logits = model(torch.randn(4, 1, 28, 28))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize("arguments", [{}, {"channels": 1}])
@pytest.mark.parametrize("name", ["resnet20", "wrn10_1", "mobilenet_v3_small"])
def test_the_seed_decides_the_weights(name, arguments):
    def draw(seed):
        torch.manual_seed(seed)
        model = build_model(name, classes=10, image_size=32, **arguments)
        return torch.cat([layer.weight.flatten() for layer in layers(model)])

    first = draw(1)
    assert torch.equal(first, draw(1))
    assert (first != draw(2)).float().mean() > 0.99


@pytest.mark.parametrize(
    ("name", "stem_positions", "final_positions"),
    [
        *(("resnet18", 32 * 32, 4 * 4), ("resnet50", 32 * 32, 4 * 4), ("mobilenet_v1", 32 * 32, 2 * 2)),
        *(("mobilenet_v2", 32 * 32, 2 * 2), ("mobilenet_v3_large", 32 * 32, 2 * 2)),
        *(("resnet20", 32 * 32, 8 * 8), ("wrn34_2", 32 * 32, 8 * 8)),
    ],
)
def test_small_images_keep_their_resolution_in_the_stem(name, stem_positions, final_positions):
    model = meta(name, classes=10, image_size=32)
    positions = []
    for layer in layers(model):
        # V3's squeeze-and-excitation works on 1×1: not a position of the trunk.
        layer.register_forward_hook(lambda _, __, output: positions.append(output[0, 0].numel()))
    model.eval()(torch.empty(1, 3, 32, 32, device="meta"))
    assert positions[0] == stem_positions
    assert min(count for count in positions if count > 1) == final_positions


def test_names_are_sorted_unique_and_hold_both_families():
    names = model_names()
    assert names == sorted(set(names))
    assert {*OWN, "resnet50", "vit_b_16", "convnext_tiny"} <= set(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet5O"}, r"model\.name=resnet5O does not exist; did you mean .*resnet50"),
        ({"name": "wrn34-2"}, r"model\.name=wrn34-2 does not exist; did you mean .*wrn34_2"),
        ({"name": "zzz"}, r"model\.name=zzz does not exist; try model\.name=resnet50"),
        ({"name": "resnet50", "dropout": 0.1}, r"model\.dropout has no effect on resnet50: drop it"),
        ({"name": "resnet20", "depth": 20}, r"model\.depth has no effect on resnet20: drop it"),
        ({"name": "vgg16_bn", "width": 2}, r"model\.width has no effect on vgg16_bn: drop it"),
        ({"name": "mobilenet_v1", "dropout": 0.0}, r"model\.dropout has no effect on mobilenet_v1"),
        (
            {"name": "mobilenet_v1", "width": 0},
            r"model\.width=0 is not positive and at most 100: try model\.width=1\.0",
        ),
        ({"name": "wrn34_2", "depth": 28}, r"model\.depth=28 contradicts model\.name=wrn34_2: drop it"),
        ({"name": "wrn34_2", "width": 4}, r"model\.width=4 contradicts model\.name=wrn34_2: drop it"),
        (
            {"name": "wrn33_2"},
            r"6n \+ 4 layers, at most 9994, not model\.depth=33: try model\.name=wide_resnet model\.depth=34",
        ),
        ({"name": "wide_resnet", "depth": 4}, r"6n \+ 4 layers, at most 9994, not model\.depth=4: .* model\.depth=10"),
        ({"name": "wide_resnet", "width": 1.5}, r"an integer from 1 to 1000, not model\.width=1\.5: .* model\.width=2"),
        ({"name": "wrn28_0"}, r"an integer from 1 to 1000, not model\.width=0: .* model\.width=2"),
        ({"name": "wide_resnet", "dropout": 1.0}, r"model\.dropout=1\.0 is outside \[0, 1\): try"),
        ({"name": "vit_b_16", "bn_eps": 1e-3}, r"model\.bn_eps has no effect on a network without BatchNorm: drop it"),
        ({"name": "resnet20", "bn_eps": -1e-3}, r"model\.bn_eps=-0\.001 must be positive and at most 1"),
        ({"name": "resnet20", "init": "xavier"}, r"model\.init=xavier does not exist: use model\.init=default"),
        ({"name": "alexnet"}, r"alexnet cannot take 28×28 images \(.+\): choose another model\.name="),
        ({"name": "vit_tiny", "image_size": 30}, r"patches of 4×4 pixels: try dataset\.image_size=32"),
        ({"name": "vit_tiny", "image_size": 1}, r"patches of 4×4 pixels: try dataset\.image_size=4$"),
        ({"name": "vit_tiny", "width": 2}, r"model\.width has no effect on vit_tiny: drop it"),
        ({"name": "vit_b_16"}, r"vit_b_16 cannot take 28×28 images \(.*patch size.*\): choose another"),
    ],
)
def test_mistakes_are_named_with_their_remedy(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        meta(**{"image_size": 32 if "bn_eps" in arguments else 28} | arguments, classes=10)
    assert "\n" not in str(caught.value)


def test_a_name_alone_means_the_settings_by_default():
    torch.manual_seed(0)
    by_name = build_model("wrn10_1", classes=3, image_size=32)
    torch.manual_seed(0)
    by_settings = build_model(ModelConfig(name="wrn10_1"), classes=3, image_size=32)
    assert all(map(torch.equal, by_name.state_dict().values(), by_settings.state_dict().values()))


def test_an_option_that_repeats_the_name_is_no_contradiction():
    model = meta("wrn34_2", classes=10, depth=34, width=2.0)
    assert parameters(model) == parameters(meta("wrn34_2", classes=10))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_builds_the_model_it_is_named_after(path):
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert settings["name"] == path.stem
    assert list(settings) == [field.name for field in fields(ModelConfig) if field.name in settings]
    assert None not in settings.values()
    model = meta(**settings, classes=10, image_size=32)
    assert model.eval()(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)


@pytest.mark.parametrize("name", ["resnet20", "resnet18", "mobilenet_v2"])
def test_every_batchnorm_has_the_eps_that_is_asked_for(name):
    found = {m.eps for m in meta(name=name, classes=10, bn_eps=1e-3).modules() if isinstance(m, nn.BatchNorm2d)}
    assert found == {1e-3}
    assert 1e-3 not in {m.eps for m in meta(name=name, classes=10).modules() if isinstance(m, nn.BatchNorm2d)}
