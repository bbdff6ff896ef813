"""VGG against torchvision's."""

import pytest
import torch
import torchvision
from model_cases import layers, meta, parameters
from torch import nn


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
