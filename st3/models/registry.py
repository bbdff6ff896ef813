"""From a name and its options to a network."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from st3.errors import UserError
from st3.models.cifar_resnet import CifarResNet
from st3.models.common import kaiming_normal, set_bn_eps
from st3.models.config import ModelConfig
from st3.models.external import build_timm, build_torchvision, torchvision_names, unknown
from st3.models.mobilenet_v1 import MobileNetV1
from st3.models.vgg import CONVS, VGG
from st3.models.vit import vit_tiny
from st3.models.wide_resnet import WideResNet

WRN = re.compile(r"wrn(\d+)_(\d+)")
"""wrn34_2: a wide_resnet whose depth and width stand in its name."""


LARGEST = 4 * 10**9
"""Weights of a network: with raw weights, gradients and momentum, all in float32, they take 64 GB."""


class Entry(NamedTuple):
    """One model: `build` takes classes, channels, image_size and those of `options` that were given."""

    build: Callable[..., nn.Module]
    options: tuple[str, ...] = ()


def _any_size(build: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """For networks that are the same whatever the image size."""
    return lambda *, image_size, **arguments: build(**arguments)


OWN = {
    **{f"resnet{depth}": Entry(_any_size(partial(CifarResNet, depth))) for depth in (20, 32, 44, 56, 110)},
    "wide_resnet": Entry(_any_size(WideResNet), ("depth", "width", "dropout")),
    **{f"vgg{depth}_bn": Entry(partial(VGG, depth)) for depth in CONVS},
    "mobilenet_v1": Entry(MobileNetV1, ("width",)),
    "vit_tiny": Entry(vit_tiny),
}


def model_names() -> list[str]:
    """Every name, sorted; besides these, `wrnD_K` for each D = 6n + 4 and integer K, and `timm/NAME`."""
    return sorted({*OWN, "wrn28_10", "wrn34_2", *torchvision_names()})


def is_own(name: str) -> bool:
    """Whether a network of that name is written here."""
    return name in OWN or WRN.fullmatch(name) is not None


@contextmanager
def _limited(config: ModelConfig) -> Iterator[None]:
    """Raises `UserError` as soon as a network that is being built has more than `LARGEST` weights."""
    total = 0

    def count(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
        nonlocal total
        total += parameter.numel()
        if total > LARGEST:
            options = [f"model.{key}={value:g}" for key in ("depth", "width") if (value := getattr(config, key))]
            raise UserError(
                f"{' '.join([f'model.name={config.name}', *options])} has more than {LARGEST:,} weights, "
                "which no GPU has the memory to train: choose a smaller network"
            )

    counting = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        counting.remove()


def build_model(config: ModelConfig | str, *, classes: int, channels: int = 3, image_size: int = 224) -> nn.Module:
    """The untrained network: `[B, channels, image_size, image_size]` float → logits `[B, classes]`.

    A name alone stands for `ModelConfig(name=…)`. Draws from PyTorch's global generator, and makes the weights where
    `with torch.device(…)` says, on meta too.

    Raises:
        UserError: a name, initialization or value that does not exist, an option that the model does not use,
            an image size that it cannot take, a network of more than `LARGEST` weights, or timm missing.
    """
    if isinstance(config, str):
        config = ModelConfig(name=config)
    name, init = config.name, config.init
    if init not in ("default", "kaiming_normal"):
        raise UserError(f"model.init={init} does not exist: use model.init=default or model.init=kaiming_normal")
    options = {option: getattr(config, option) for option in ("depth", "width", "dropout")}
    given = {option: value for option, value in options.items() if value is not None}

    if match := WRN.fullmatch(name):
        for option, value in zip(("depth", "width"), map(int, match.groups()), strict=True):
            if given.setdefault(option, value) != value:
                raise UserError(
                    f"model.{option}={given[option]} contradicts model.name={name}: drop it, "
                    "or use model.name=wide_resnet"
                )
        entry = OWN["wide_resnet"]
    elif name in OWN:
        entry = OWN[name]
    elif name.startswith("timm/"):
        entry = Entry(partial(build_timm, name.removeprefix("timm/")))
    elif name in torchvision_names():
        entry = Entry(partial(build_torchvision, name))
    else:
        raise UserError(unknown(name, model_names()))

    for option in given:
        if option not in entry.options:
            raise UserError(f"model.{option} has no effect on {name}: drop it")
    with _limited(config):
        model = entry.build(classes=classes, channels=channels, image_size=image_size, **given)
    if init == "kaiming_normal":
        kaiming_normal(model)
    if config.bn_eps:
        set_bn_eps(model, config.bn_eps)
    return model
