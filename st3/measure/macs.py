"""Multiply-accumulates (MACs) of the layers that `weight_layers` names.

Convention: batch 1; a zero weight costs nothing; only products with these weights are counted, so not biases,
normalisation, activations, pooling, or the products of queries with keys and values in attention.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from st3.errors import UserError
from st3.sparsify.layers import weight_layers


def layer_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """MACs of every dense layer of `weight_layers(model)`, for one input of shape (channels, height, width).

    A layer that runs twice counts twice; a weight that several layers share is listed under the first one's name with
    the sum. Of the input projection of `nn.MultiheadAttention` one third works at each position of the query, one at
    each of the key and one at each of the value. Runs on the meta device: nothing is computed and the model is
    untouched.

    Raises `UserError` when the model cannot take inputs of that shape.
    """
    meta = _without_storage(model).eval()
    names = {id(weight): name for name, weight in weight_layers(meta).items()}
    macs = dict.fromkeys(names.values(), 0)

    def add(weight: Tensor, outputs: int) -> None:
        """Each of `outputs` numbers is the sum of products with one row of `weight`."""
        if id(weight) in names:
            macs[names[id(weight)]] += outputs * weight[0].numel()

    for module in meta.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda layer, _, output: add(layer.weight, output.numel()))
        elif isinstance(module, nn.MultiheadAttention):
            module.register_forward_hook(
                lambda layer, inputs, named, _: _count_attention(layer, inputs, named, add), with_kwargs=True
            )
    try:
        with torch.no_grad(), _Linear(add):
            meta(torch.empty(1, *input_shape, device="meta"))
    except RuntimeError as error:
        channels, height, width = input_shape
        reason = str(error).splitlines()[0]
        raise UserError(
            f"this model cannot take images of {channels}×{height}×{width} ({reason}): "
            "choose another model.name or dataset.image_size"
        ) from error
    return macs


def _without_storage(model: nn.Module) -> nn.Module:
    """A copy on the meta device that shares weights where the model does; `.to("meta")` would separate them."""
    memo: dict[int, Tensor] = {id(each): torch.empty_like(each, device="meta") for each in model.buffers()}
    for each in model.parameters():
        memo[id(each)] = nn.Parameter(torch.empty_like(each, device="meta"), requires_grad=False)
    return copy.deepcopy(model, memo)


class _Linear(TorchFunctionMode):
    """Reports every product with a Linear layer's weight: some attention uses the weight without calling the layer."""

    def __init__(self, add: Callable[[Tensor, int], None]):
        super().__init__()
        self.add = add

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = kwargs or {}
        output = function(*args, **named)
        if function is F.linear:
            self.add(args[1] if len(args) > 1 else named["weight"], output.numel())
        return output


def _count_attention(
    layer: nn.MultiheadAttention, inputs: tuple[Any, ...], named: dict[str, Any], add: Callable[[Tensor, int], None]
) -> None:
    """Reports the products with its projections, which it does not call as layers, not even out_proj."""
    given = dict(zip(("query", "key", "value"), inputs, strict=False)) | named
    query, key, value = (
        layer.embed_dim * given[each].numel() // given[each].shape[-1] for each in ("query", "key", "value")
    )
    if layer.in_proj_weight is not None:
        add(layer.in_proj_weight, query + key + value)
    else:
        add(layer.q_proj_weight, query)
        add(layer.k_proj_weight, key)
        add(layer.v_proj_weight, value)
    add(layer.out_proj.weight, query)
