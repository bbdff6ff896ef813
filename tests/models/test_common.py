"""The one initialization that every architecture may have."""

import math

import pytest
import torch
from model_cases import build, layers
from torch import nn


@pytest.mark.parametrize(
    ("name", "init"),
    [
        *(("resnet20", "default"), ("wrn10_2", "default"), ("vgg11_bn", "default")),
        *(("mobilenet_v1", "default"), ("resnet18", "kaiming_normal"), ("mobilenet_v2", "kaiming_normal")),
    ],
)
def test_kaiming_normal_fan_in(name, init):
    torch.manual_seed(0)
    model = build(name, classes=10, image_size=32, init=init)
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
