"""Optimizers by name, with weight decay where it belongs."""

from collections.abc import Sequence

import torch
from torch import nn

from st3.errors import UserError


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Two groups of trainable parameters: Conv and Linear weights with decay; biases and normalisation without."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear)
    decayed = {id(m.weight) for m in model.modules() if isinstance(m, kinds)}
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if id(p) in decayed], "weight_decay": weight_decay},
        {"params": [p for p in trainable if id(p) not in decayed], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    model: nn.Module,
    name: str,
    *,
    lr: float,
    weight_decay: float,
    momentum: float | None = None,
    nesterov: bool | None = None,
    betas: Sequence[float] | None = None,
    eps: float | None = None,
) -> torch.optim.Optimizer:
    """SGD or AdamW over `parameter_groups`; PyTorch's defaults for what is None.

    Raises `UserError` for another name or values that PyTorch refuses.
    """
    groups = parameter_groups(model, weight_decay)
    # One launch for all parameters, and a learning rate that may be a tensor, as a captured step needs it.
    fused = True if next(model.parameters()).is_cuda else None
    try:
        if name == "sgd":
            return torch.optim.SGD(groups, lr=lr, fused=fused, **_given(momentum=momentum, nesterov=nesterov))
        if name == "adamw":
            options = _given(betas=tuple(betas) if betas else None, eps=eps)
            return torch.optim.AdamW(groups, lr=lr, fused=fused, capturable=bool(fused), **options)
    except ValueError as error:
        raise UserError(f"optimizer: {error}") from error
    raise UserError(f"optimizer.name={name} does not exist: choose sgd or adamw")


def _given(**options) -> dict:
    return {name: value for name, value in options.items() if value is not None}
