"""A trained network as a program from pixels to logits, BatchNorm folded away: what exported files are made from."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from st3.deploy.card import Card
from st3.deploy.network import Trained
from st3.errors import UserError
from st3.sparsify import weight_layers

aten = torch.ops.aten


class PixelNetwork(nn.Module):
    """float32 pixels [B, C, H, W] in [0, 1] → logits [B, classes].

    The normalization stays a subtraction and a division in front of the network: folded into a first convolution it
    would be wrong at the border, where the convolution pads with zeros.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, card: Card):
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(card.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(card.std).view(1, -1, 1, 1))

    def forward(self, pixels: Tensor) -> Tensor:
        return self.network((pixels - self.mean) / self.std)


def pixel_program(trained: Trained) -> ExportedProgram:
    """`PixelNetwork` of a network on the CPU, of a batch of any size, each BatchNorm behind a Conv2d folded into it.

    Its input is `pixels`, its output `logits`; its state dict has the network's names below `network.`. It says nothing
    of the machine that made it. Raises `UserError` for a network that cannot be traced.
    """
    card = trained.card
    model = PixelNetwork(trained.model, card).eval().to(memory_format=torch.contiguous_format)
    shape = card.channels, card.image_size, card.image_size
    graph = _traced(model, shape, card).module()
    assert isinstance(graph, GraphModule)
    fold_batch_norms(graph)
    program = _traced(graph, shape, card)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of files
    return program


def fold_batch_norms(graph: GraphModule) -> None:
    """Each BatchNorm in eval mode whose input is a Conv2d and nothing else's is multiplied into the Conv2d, in place.

    A weight of 0 stays 0. The weights of the module that was traced are not touched.
    """
    for norm in [node for node in graph.graph.nodes if node.target is aten.batch_norm.default]:
        conv, (scale, shift, mean, variance, _, _, eps) = norm.args[0], norm.args[1:8]
        if conv.target not in (aten.conv2d.default, aten.conv2d.padding) or len(conv.users) > 1:
            continue
        weight, bias = conv.args[1], conv.args[2] if len(conv.args) > 2 else None
        if len(weight.users) > 1 or (bias and len(bias.users) > 1):
            continue  # shared with another layer
        at = [None if node is None else _value(graph, node) for node in (weight, bias, mean, variance, scale, shift)]
        fused, offset = fuse_conv_bn_weights(at[0], at[1], at[2], at[3], eps, at[4], at[5])  # type: ignore[arg-type]
        _put(graph, weight.target, fused)
        name = f"{weight.target.removesuffix('weight')}bias"
        _put(graph, name, offset)
        if bias is None:
            with graph.graph.inserting_before(conv):
                bias = graph.graph.get_attr(name)
            conv.args = (conv.args[0], weight, bias, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.graph.erase_node(norm)
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def program_weights(program: ExportedProgram, model: nn.Module) -> dict[str, Tensor]:
    """The weight of each layer of `model`, as `program` has it, in the order of the model."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state: Mapping[str, Tensor] = program.state_dict
    return {layer: state[f"network.{names[id(weight)]}"].detach() for layer, weight in weight_layers(model).items()}


def _traced(module: nn.Module, shape: tuple[int, int, int], card: Card) -> ExportedProgram:
    example = torch.zeros(2, *shape)  # of one image a batch of one would be taken for a constant
    try:
        with torch.no_grad():
            return torch.export.export(module, (example,), dynamic_shapes=({0: Dim.DYNAMIC},))
    except Exception as error:  # whatever the network's own code raises on the way
        reason = str(error).strip().partition("\n")[0][:200] or type(error).__name__
        raise UserError(f"{card.model.name} cannot be traced for a batch of any size: {reason}") from error


def _value(graph: GraphModule, node: Node) -> Tensor:
    holder, _, name = str(node.target).rpartition(".")
    return getattr(graph.get_submodule(holder), name)


def _put(graph: GraphModule, path: str, value: Tensor) -> None:
    holder, _, name = path.rpartition(".")
    setattr(graph.get_submodule(holder), name, nn.Parameter(value.detach().contiguous(), requires_grad=False))
