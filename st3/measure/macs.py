"""Multiply-accumulates (MACs) of Conv2d and Linear layers.

Convention: batch 1; a zero weight costs nothing; biases, normalisation, activations and pooling are not counted.
"""

import copy

import torch
from torch import nn

from st3.errors import UserError


def layer_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> dict[str, int]:
    """MACs of every dense Conv2d and Linear layer by name, for one input of shape (channels, height, width).

    A layer that runs twice counts twice; a weight that several layers share is listed under the first one's name with
    the sum. Of `nn.MultiheadAttention` only the output projection is a Linear layer; the input projections are plain
    parameters and not counted. Runs on the meta device: nothing is computed and the model is untouched.

    Raises `UserError` when the model cannot take inputs of that shape.
    """
    meta = copy.deepcopy(model).to("meta").eval()
    macs: dict[str, int] = {}
    owner: dict[int, str] = {}
    for (name, original), module in zip(model.named_modules(), meta.modules(), strict=True):
        if isinstance(module, nn.Conv2d | nn.Linear):
            name = owner.setdefault(id(original.weight), name)  # moving to meta unties shared weights
            macs[name] = 0

            def count(layer, _, output, name=name):
                # Every weight of an output channel works once at each of the channel's output positions.
                macs[name] += layer.weight.numel() * output.numel() // layer.weight.shape[0]

            module.register_forward_hook(count)
        elif isinstance(module, nn.MultiheadAttention):
            # It multiplies by out_proj's weight without calling out_proj: once at each of its output positions.
            def count_projection(attention, _, output, name=f"{name}.out_proj"):
                macs[name] += attention.out_proj.weight.numel() * output[0].numel() // attention.embed_dim

            module.register_forward_hook(count_projection)
    try:
        with torch.no_grad():
            meta(torch.empty(1, *input_shape, device="meta"))
    except RuntimeError as error:
        channels, height, width = input_shape
        reason = str(error).splitlines()[0]
        raise UserError(
            f"this model cannot take images of {channels}×{height}×{width} ({reason}): "
            "choose another model.name or dataset.image_size"
        ) from error
    return macs
