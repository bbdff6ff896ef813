"""Architectures against the numbers of their papers, and every message of the registry."""

import math
import sys
from pathlib import Path

import pytest
import torch
import torchvision
import yaml
from torch import nn

from st3.errors import UserError
from st3.models import build_model, model_names
from st3.models.cifar_resnet import BasicBlock
from st3.models.wide_resnet import PreActBlock

OWN = [f"resnet{depth}" for depth in (20, 32, 44, 56, 110)]
OWN += [f"vgg{depth}_bn" for depth in (11, 13, 16, 19)]
OWN += ["wide_resnet", "wrn34_2", "mobilenet_v1"]
CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "model").glob("*.yaml"))


def meta(name: str, **arguments) -> nn.Module:
    """The model without any storage."""
    with torch.device("meta"):
        return build_model(name, **arguments)


def layers(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, channels: int, size: int) -> int:
    """Multiply-accumulates of Conv2d and Linear for one image: weights × output positions."""
    total = 0

    def count(module, _, output):
        nonlocal total
        total += module.weight.numel() * output[0, 0].numel()

    for layer in layers(model):
        layer.register_forward_hook(count)
    model.eval()(torch.empty(1, channels, size, size, device="meta"))
    return total


# Shapes


@pytest.mark.parametrize("size", [28, 32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OWN)
def test_own_models_map_small_images_to_logits(name, channels, size):
    model = meta(name, classes=7, channels=channels, image_size=size)
    assert model(torch.empty(2, channels, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("size", [28, 96])
@pytest.mark.parametrize("name", ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small"])
def test_torchvision_models_take_gray_images_of_any_size(name, size):
    model = meta(name, classes=7, channels=1, image_size=size)
    assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("vit_b_16", 32), ("maxvit_t", 448), ("inception_v3", 96), ("googlenet", 32)),
        *(("regnet_y_400mf", 32), ("swin_t", 32)),
    ],
)
def test_torchvision_models_with_ways_of_their_own(name, size):
    model = meta(name, classes=7, channels=1, image_size=size)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("name", ["resnet20", "wrn10_1", "vgg11_bn", "mobilenet_v1"])
def test_every_parameter_gets_a_finite_gradient(name):
    model = build_model(name, classes=3, channels=1, image_size=28)
    logits = model(torch.randn(4, 1, 28, 28))
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None, parameter_name
        assert parameter.grad.isfinite().all(), parameter_name


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2)])
def test_residual_blocks_without_their_residual_are_the_shortcut(inputs, outputs, stride):
    x = torch.randn(2, inputs, 6, 6)

    # Pre-activation: nothing follows the sum, and a convolution shortcut sees the activated input.
    wide = PreActBlock(inputs, outputs, stride, dropout=0.0)
    nn.init.zeros_(wide.conv2.weight)
    expected = x if wide.shortcut is None else wide.shortcut(wide.bn1(x).relu())
    torch.testing.assert_close(wide(x), expected)

    # He et al. 2015: the sum is activated, and the shortcut sees the input as it is.
    basic = BasicBlock(inputs, outputs, stride)
    nn.init.zeros_(basic.conv2.weight)
    torch.testing.assert_close(basic(x), basic.shortcut(x).relu())


@pytest.mark.parametrize("name", OWN)
def test_own_models_are_made_of_plain_layers(name):
    assert {type(layer) for layer in layers(meta(name, classes=10))} == {nn.Conv2d, nn.Linear}


# Sizes


@pytest.mark.parametrize(
    ("depth", "without_projections"),  # He et al., table 6, to the digit
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnet_parameters(depth, without_projections):
    # Two 1×1 shortcuts: 16·32 + 32·64 weights, and weight and bias of their batch normalization.
    expected = without_projections + 2560 + 2 * (32 + 64)
    assert parameters(meta(f"resnet{depth}", classes=10, image_size=32)) == expected


@pytest.mark.parametrize(
    ("depth", "width", "millions"),  # Zagoruyko & Komodakis, table 4
    [(40, 1, 0.6), (40, 2, 2.2), (40, 4, 8.9), (28, 10, 36.5), (28, 12, 52.5), (22, 8, 17.2), (16, 8, 11.0)],
)
def test_wide_resnet_parameters(depth, width, millions):
    by_name = parameters(meta(f"wrn{depth}_{width}", classes=10, image_size=32))
    by_option = parameters(meta("wide_resnet", classes=10, image_size=32, depth=depth, width=width))
    assert round(by_name / 1e6, 1) == millions
    assert by_option == by_name


def test_wrn34_2_lies_halfway_between_its_neighbours():
    # WRN-28-2 has 1,467,610 parameters, WRN-40-2 2,243,546: the count is linear in the depth.
    assert parameters(meta("wrn34_2", classes=10, image_size=32)) == (1_467_610 + 2_243_546) // 2


@pytest.mark.parametrize("name", ["vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"])
def test_vgg_is_torchvisions_without_the_convolution_biases(name):
    ours = meta(name, classes=1000)
    with torch.device("meta"):
        theirs = torchvision.models.get_model(name, weights=None)
    biases = sum(layer.bias.numel() for layer in layers(theirs) if type(layer) is nn.Conv2d)
    assert parameters(ours) == parameters(theirs) - biases
    assert [layer.weight.shape for layer in layers(ours)] == [layer.weight.shape for layer in layers(theirs)]


@pytest.mark.parametrize("size", [32, 64])
def test_vgg_has_one_linear_layer_on_small_images(size):
    linear = [layer for layer in layers(meta("vgg16_bn", classes=10, image_size=size)) if type(layer) is nn.Linear]
    assert [layer.weight.shape for layer in linear] == [(10, 512)]


@pytest.mark.parametrize(
    ("width", "million_macs", "million_parameters"),  # Howard et al., table 6
    [(1.0, 569, 4.2), (0.75, 325, 2.6), (0.5, 149, 1.3), (0.25, 41, 0.5)],
)
def test_mobilenet_v1_width(width, million_macs, million_parameters):
    model = meta("mobilenet_v1", classes=1000, width=width)
    assert macs(model, 3, 224) / 1e6 == pytest.approx(million_macs, abs=1)
    assert parameters(model) / 1e6 == pytest.approx(million_parameters, abs=0.06)


def test_mobilenet_v1_exactly():
    model = meta("mobilenet_v1", classes=1000)
    assert macs(model, 3, 224) == 568_740_352
    assert parameters(model) == 4_231_976


def test_resnet50_exactly():
    model = meta("resnet50", classes=1000)
    assert sum(layer.weight.numel() for layer in layers(model)) == 25_502_912
    assert macs(model, 3, 224) == 4_089_184_256


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


# Initialization


@pytest.mark.parametrize(
    ("name", "init"),
    [
        *(("resnet20", "default"), ("wrn10_2", "default"), ("vgg11_bn", "default")),
        *(("mobilenet_v1", "default"), ("resnet18", "kaiming_normal"), ("mobilenet_v2", "kaiming_normal")),
    ],
)
def test_kaiming_normal_fan_in(name, init):
    torch.manual_seed(0)
    model = build_model(name, classes=10, image_size=32, init=init)
    for layer in layers(model):
        weight = layer.weight
        fan_in = weight[0].numel()
        # The standard error of a standard deviation is σ/√(2n); five of them.
        tolerance = 5 / math.sqrt(2 * weight.numel())
        assert weight.std().item() * math.sqrt(fan_in / 2) == pytest.approx(1, abs=tolerance)
        assert layer.bias is None or not layer.bias.any()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms
    assert all((norm.weight == 1).all() and (norm.bias == 0).all() for norm in norms)


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_default_is_torchvisions_own_initialization(name):
    torch.manual_seed(3)
    ours = build_model(name, classes=10).state_dict()
    torch.manual_seed(3)
    theirs = torchvision.models.get_model(name, weights=None, num_classes=10).state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize(
    ("channels", "size", "fan_out"), [(1, 224, 64 * 49), (5, 224, 64 * 49), (3, 32, 64 * 9), (1, 32, 64 * 9)]
)
def test_a_new_stem_has_the_scale_of_the_old(channels, size, fan_out):
    torch.manual_seed(0)
    stem = build_model("resnet18", classes=10, channels=channels, image_size=size).conv1
    kernel, stride = (7, 2) if size == 224 else (3, 1)
    assert stem.weight.shape == (64, channels, kernel, kernel)
    assert stem.stride == (stride, stride)
    assert stem.bias is None
    # torchvision's rule is Kaiming normal, fan-out, which the number of input channels does not enter.
    assert stem.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.15)


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


def test_torchvision_loads_our_resnet50():
    with torch.device("meta"):
        theirs = torchvision.models.resnet50()
    theirs.load_state_dict(build_model("resnet50", classes=1000).state_dict(), strict=True, assign=True)
    assert not any(parameter.is_meta for parameter in theirs.parameters())


def test_checking_the_image_size_leaves_no_trace():
    model = build_model("resnet18", classes=10, image_size=32)
    assert all(module.training for module in model.modules())
    assert model.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("name", ["wrn34_2", "wide_resnet"])
@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.0), (0.2, 0.2)])
def test_dropout_sits_in_every_block(name, dropout, expected):
    model = meta(name, classes=10, dropout=dropout)
    convolutions_per_block = 2
    blocks = sum(layer.kernel_size == (3, 3) for layer in layers(model)[:-1]) // convolutions_per_block
    assert [module.p for module in model.modules() if type(module) is nn.Dropout] == [expected] * blocks


# Names and messages


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
        ({"name": "mobilenet_v1", "width": 0}, r"model\.width=0 is not positive: try model\.width=1\.0"),
        ({"name": "wrn34_2", "depth": 28}, r"model\.depth=28 contradicts model\.name=wrn34_2: drop it"),
        ({"name": "wrn34_2", "width": 4}, r"model\.width=4 contradicts model\.name=wrn34_2: drop it"),
        ({"name": "wrn33_2"}, r"6n \+ 4 layers, not 33: try model\.name=wide_resnet model\.depth=34"),
        ({"name": "wide_resnet", "depth": 4}, r"6n \+ 4 layers, not 4: .* model\.depth=10"),
        ({"name": "wide_resnet", "width": 1.5}, r"positive integer, not 1\.5: .* model\.width=2"),
        ({"name": "wrn28_0"}, r"positive integer, not 0: .* model\.width=2"),
        ({"name": "wide_resnet", "dropout": 1.0}, r"model\.dropout=1\.0 is outside \[0, 1\): try"),
        ({"name": "resnet20", "init": "xavier"}, r"model\.init=xavier does not exist: use model\.init=default"),
        ({"name": "alexnet"}, r"alexnet cannot take 28×28 images \(.+\): choose another model\.name="),
        ({"name": "vit_b_16"}, r"vit_b_16 cannot take 28×28 images \(.*patch size.*\): choose another"),
    ],
)
def test_mistakes_are_named_with_their_remedy(arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        meta(**arguments, classes=10, image_size=28)
    assert "\n" not in str(caught.value)


def test_an_option_that_repeats_the_name_is_no_contradiction():
    model = meta("wrn34_2", classes=10, depth=34, width=2.0)
    assert parameters(model) == parameters(meta("wrn34_2", classes=10))


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 32), ("vit_tiny_patch16_224", 64), ("mobilenetv3_small_050", 32)]
)
def test_timm(name, size):
    pytest.importorskip("timm")
    model = meta(f"timm/{name}", classes=7, channels=1, image_size=size)
    assert model(torch.empty(2, 1, size, size, device="meta")).shape == (2, 7)


def test_timm_does_not_know_the_name():
    pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"model\.name=timm/resnet5O does not exist; did you mean .*timm/resnet50"):
        meta("timm/resnet5O", classes=10)


def test_timm_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r"model\.name=timm/resnet18 needs timm: pip install 'st3\[timm\]'"):
        meta("timm/resnet18", classes=10)


# Configuration files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_builds_the_model_it_is_named_after(path):
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert list(config) == ["name", "init", "depth", "width", "dropout"]
    assert config["name"] == path.stem
    model = meta(**config, classes=10, image_size=32)
    assert model.eval()(torch.empty(1, 3, 32, 32, device="meta")).shape == (1, 10)
