"""Networks without storage, and what they are made of."""

import torch
from torch import nn

from st3.models import ModelConfig, build_model


def build(name: str, *, init="default", depth=None, width=None, dropout=None, bn_eps=0.0, **images) -> nn.Module:
    """`build_model` of the settings of a model, with its other arguments among them."""
    return build_model(
        ModelConfig(name=name, init=init, depth=depth, width=width, dropout=dropout, bn_eps=bn_eps), **images
    )


def meta(name: str, **arguments) -> nn.Module:
    """The model without any storage."""
    with torch.device("meta"):
        return build(name, **arguments)


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
