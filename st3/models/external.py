"""Classifiers of torchvision and timm, untrained, fitted to the images at hand."""

import difflib
from typing import Any

import torch
import torchvision.models as zoo
from torch import nn

from st3.errors import UserError, one_line
from st3.models.common import SMALL_IMAGE


def torchvision_names() -> list[str]:
    """Every classification model of torchvision."""
    return zoo.list_models(module=zoo)


def build_torchvision(name: str, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """torchvision's model `name`: `[B, channels, image_size, image_size]` float → logits `[B, classes]`.

    Images of at most 64 pixels: a ResNet gets a 3×3 stem of stride 1 and no max-pool, a MobileNetV2 or V3
    a stem of stride 1; the others stay as they are. `channels` other than 3 replaces the first convolution.

    Raises:
        UserError: the model cannot take images of this size.
    """
    options: dict[str, Any] = {}
    if name.startswith("vit_"):
        options = {"image_size": image_size}
    elif name.startswith("maxvit"):
        options = {"input_size": (image_size, image_size)}
    elif name in ("googlenet", "inception_v3"):
        # One output, and PyTorch's initialization: their own is very slow.
        options = {"aux_logits": False, "init_weights": False}
    try:
        # RegNets read their layer sizes back from tensors, which meta cannot do: made on the CPU, then moved.
        device = torch.get_default_device()
        with torch.device("cpu" if name.startswith("regnet") else device):
            model = zoo.get_model(name, weights=None, num_classes=classes, **options).to(device)
        if image_size <= SMALL_IMAGE:
            _shrink_less(model)
        if channels != 3:
            replace_first_conv(model, channels)
        _probe(model, channels, image_size)
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"{name} cannot take {image_size}×{image_size} images ({one_line(error)}): choose another model.name=…"
        ) from error
    return model


def build_timm(name: str, *, classes: int, channels: int, image_size: int) -> nn.Module:
    """timm's model `name` (without `timm/`): `[B, channels, image_size, image_size]` → logits `[B, classes]`.

    Raises:
        UserError: timm is not installed or has no such model.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(
            f"model.name=timm/{name} needs timm: pip install 'st3[timm]', or choose another model.name=…"
        ) from error
    if not timm.is_model(name):
        raise UserError(unknown(f"timm/{name}", [f"timm/{known}" for known in timm.list_models()]))
    # Only models tied to one image size know the argument.
    sized = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)
    options: dict[str, Any] = {"img_size": image_size} if sized else {}
    return timm.create_model(name, pretrained=False, num_classes=classes, in_chans=channels, **options)


def unknown(name: str, known: list[str]) -> str:
    """The message about a model name that does not exist, with the closest that do."""
    close = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {', '.join(close)}?" if close else "try model.name=resnet50"
    return f"model.name={name} does not exist; {hint}"


def _shrink_less(model: nn.Module) -> None:
    if isinstance(model, zoo.ResNet):
        model.conv1 = nn.Conv2d(3, model.conv1.out_channels, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as torchvision does
        model.maxpool = nn.Identity()
    elif isinstance(model, zoo.MobileNetV2 | zoo.MobileNetV3):
        model.features[0][0].stride = (1, 1)


def replace_first_conv(model: nn.Module, channels: int) -> None:
    """Give the stem `channels` inputs; new weights are normal with the old ones' standard deviation."""
    name, old = next(
        (name, module)
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and module.in_channels == 3
    )
    kept: dict[str, Any] = {
        option: getattr(old, option)
        for option in ("out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    }
    new = nn.Conv2d(channels, bias=old.bias is not None, **kept)
    with torch.no_grad():
        new.weight.copy_(torch.randn_like(new.weight) * old.weight.std())
    new.bias = old.bias
    model.set_submodule(name, new)


def _probe(model: nn.Module, channels: int, image_size: int) -> None:
    """Run the model on shapes alone: raises what a forward pass would raise, computes and changes nothing."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in state.items()}
    image = torch.empty(1, channels, image_size, image_size, device="meta")
    model.eval()
    torch.func.functional_call(model, shapes, (image,))
    model.train()
