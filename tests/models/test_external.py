"""Classifiers of torchvision and timm, fitted to the images."""

import math
import sys

import pytest
import torch
import torchvision
from model_cases import layers, macs, meta

from st3.errors import UserError
from st3.models import build_model


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


def test_resnet50_exactly():
    model = meta("resnet50", classes=1000)
    assert sum(layer.weight.numel() for layer in layers(model)) == 25_502_912
    assert macs(model, 3, 224) == 4_089_184_256


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


def test_a_new_stem_keeps_the_bias():
    torch.manual_seed(0)
    ours = build_model("alexnet", classes=10, channels=1)
    torch.manual_seed(0)
    theirs = torchvision.models.alexnet(num_classes=10)
    assert torch.equal(ours.features[0].bias, theirs.features[0].bias)


def test_torchvision_loads_our_resnet50():
    with torch.device("meta"):
        theirs = torchvision.models.resnet50()
    theirs.load_state_dict(build_model("resnet50", classes=1000).state_dict(), strict=True, assign=True)
    assert not any(parameter.is_meta for parameter in theirs.parameters())


def test_checking_the_image_size_leaves_no_trace():
    model = build_model("resnet18", classes=10, image_size=32)
    assert all(module.training for module in model.modules())
    assert model.bn1.num_batches_tracked == 0


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
