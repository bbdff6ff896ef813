"""CIFAR ResNets against the numbers of their paper."""

import pytest
import torch
from model_cases import meta, parameters
from torch import nn

from st3.models.cifar_resnet import BasicBlock


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (8, 2)])
def test_a_block_without_its_residual_is_its_activated_shortcut(outputs, stride):
    x = torch.randn(2, 4, 6, 6)
    block = BasicBlock(4, outputs, stride)
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(x), block.shortcut(x).relu())


@pytest.mark.parametrize(
    ("depth", "without_projections"),  # He et al., table 6, to the digit
    [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018), (110, 1_727_962)],
)
def test_cifar_resnet_parameters(depth, without_projections):
    # Two 1×1 shortcuts: 16·32 + 32·64 weights, and weight and bias of their batch normalization.
    expected = without_projections + 2560 + 2 * (32 + 64)
    assert parameters(meta(f"resnet{depth}", classes=10, image_size=32)) == expected
