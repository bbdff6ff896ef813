"""Which parameters of a model are the weights of its layers."""

from torch import nn

from st3.errors import UserError

_PROJECTIONS = "in_proj", "q_proj", "k_proj", "v_proj"


def weight_layers(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weight of every Conv2d and Linear by the name of its layer, in the order of the model.

    `nn.MultiheadAttention` keeps the weight of its input projection itself: a Linear of [3E, E], here NAME.in_proj,
    or three of them where keys or values have other sizes. A weight that several layers share has the first one's
    name. Raises `UserError` for a weight that is no plain parameter.
    """
    layers: dict[str, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            if not all(f"{each}_weight" in module._parameters for each in _PROJECTIONS):
                raise UserError(f"the weights of {name} are not plain parameters: remove its parametrization first")
            held = {each: module._parameters[f"{each}_weight"] for each in _PROJECTIONS}
            found = {f"{name}.{each}".lstrip("."): weight for each, weight in held.items() if weight is not None}
        elif isinstance(module, nn.Conv2d | nn.Linear):
            weight = module._parameters.get("weight")
            if weight is None:
                raise UserError(f"the weight of {name} is not a plain parameter: remove its parametrization first")
            found = {name: weight}
        else:
            continue
        seen = {id(weight) for weight in layers.values()}
        layers |= {layer: weight for layer, weight in found.items() if id(weight) not in seen}
    return layers


def left_alone(model: nn.Module) -> list[str]:
    """Names of the parameters of two and more dimensions that are no layer's weight: position embeddings and such."""
    weights = {id(weight) for weight in weight_layers(model).values()}
    return [name for name, p in model.named_parameters() if p.ndim > 1 and id(p) not in weights]
