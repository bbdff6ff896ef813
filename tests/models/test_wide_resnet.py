"""Wide ResNets against the numbers of their paper."""

import pytest
import torch
from model_cases import layers, meta, parameters
from torch import nn

from st3.models.wide_resnet import PreActBlock


@pytest.mark.parametrize(("outputs", "stride"), [(4, 1), (8, 2)])
def test_a_block_without_its_residual_is_its_shortcut(outputs, stride):
    x = torch.randn(2, 4, 6, 6)
    block = PreActBlock(4, outputs, stride, dropout=0.0)
    nn.init.zeros_(block.conv2.weight)
    # Nothing follows the sum, and a convolution shortcut sees the activated input.
    torch.testing.assert_close(block(x), x if block.shortcut is None else block.shortcut(block.bn1(x).relu()))


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


@pytest.mark.parametrize("name", ["wrn34_2", "wide_resnet"])
@pytest.mark.parametrize(("dropout", "expected"), [(None, 0.0), (0.2, 0.2)])
def test_dropout_sits_in_every_block(name, dropout, expected):
    model = meta(name, classes=10, dropout=dropout)
    convolutions_per_block = 2
    blocks = sum(layer.kernel_size == (3, 3) for layer in layers(model)[:-1]) // convolutions_per_block
    assert [module.p for module in model.modules() if type(module) is nn.Dropout] == [expected] * blocks
