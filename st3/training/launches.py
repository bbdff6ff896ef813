"""The forward pass of a small network in fewer launches: there it takes longer to launch a kernel than to run it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from st3.training.machine import Machine


class FewerLaunches:
    """A training forward pass of `model`, bit for bit the same, with two things done once instead of in each layer.

    Autocast casts the weights of every Conv2d and Linear, and their gradients back; every BatchNorm counts its batches.
    """

    def __init__(self, model: nn.Module, machine: Machine):
        self._model, self._dtype = model, machine.dtype
        layers = {f"{name}.": m for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        self._cast = {prefix + name: p for prefix, layer in layers.items() for name, p in layer.named_parameters()}
        self._counting = [
            m
            for m in model.modules()
            # Without momentum the mean is over all batches, and needs their number in the layer.
            if isinstance(m, _BatchNorm) and m.num_batches_tracked is not None and m.momentum is not None
        ]
        self._counts: list[Any] = [m.num_batches_tracked for m in self._counting]

    def __call__(self, images: Tensor) -> Tensor:
        cast: dict[str, Tensor] = {}
        if self._dtype != torch.float32:
            cast = dict(zip(self._cast, _Cast.apply(self._dtype, *self._cast.values()), strict=True))
        for module in self._counting:
            module.num_batches_tracked = None
        try:
            logits: Tensor = functional_call(self._model, cast, (images,))
        finally:
            for module, count in zip(self._counting, self._counts, strict=True):
                module.num_batches_tracked = count
        if self._counts:
            torch._foreach_add_(self._counts, 1)
        return logits


class _Cast(torch.autograd.Function):
    """Tensors of one dtype to another, in one launch; so are their gradients on the way back."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [tensor.dtype for tensor in tensors]
        return _all_as([dtype] * len(tensors), tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_all_as(ctx.dtypes, gradients)


def _all_as(dtypes: Sequence[torch.dtype], tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor, dtype in zip(tensors, dtypes, strict=True)]
    torch._foreach_copy_(copies, list(tensors))
    return tuple(copies)
