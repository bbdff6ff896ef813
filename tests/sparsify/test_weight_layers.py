"""Which parameters are the weights of layers, also those of attention."""

import pytest
import torch
from helpers import network
from torch import nn
from torch.nn.utils import prune

from st3 import UserError
from st3.sparsify import left_alone, weight_layers


class Everything(nn.Module):
    """One of each kind of module that has a weight of two or more dimensions."""

    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(1, 7, 8))
        self.token = nn.Embedding(11, 8)
        self.patches = nn.Conv2d(3, 8, 2)
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.signal = nn.Conv1d(8, 8, 3)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.head = nn.Linear(8, 5)


def test_convolutions_linear_layers_and_attention_in_the_order_of_the_model():
    model = Everything()
    layers = weight_layers(model)
    assert list(layers) == ["patches", "attention.in_proj", "attention.out_proj", "head"]
    assert layers["patches"] is model.patches.weight
    assert layers["attention.in_proj"] is model.attention.in_proj_weight
    assert layers["attention.in_proj"].shape == (24, 8)
    assert layers["attention.out_proj"] is model.attention.out_proj.weight
    assert layers["head"] is model.head.weight


def test_what_is_left_alone_has_two_dimensions_and_no_layer():
    model = Everything()
    assert left_alone(model) == ["position", "token.weight", "signal.weight", "up.weight"]
    assert left_alone(network()) == []


def test_every_matrix_is_a_layers_weight_or_left_alone():
    model = Everything()
    named = {id(weight) for weight in weight_layers(model).values()}
    alone = set(left_alone(model))
    for name, parameter in model.named_parameters():
        assert (parameter.ndim > 1) == ((id(parameter) in named) != (name in alone))


@pytest.mark.parametrize(
    ("sizes", "projections"),
    [
        ({"kdim": 6, "vdim": 4}, {"q_proj": (8, 8), "k_proj": (8, 6), "v_proj": (8, 4)}),
        ({"vdim": 4}, {"q_proj": (8, 8), "k_proj": (8, 8), "v_proj": (8, 4)}),
        ({"kdim": 8, "vdim": 8}, {"in_proj": (24, 8)}),
    ],
)
def test_keys_and_values_of_other_sizes_have_projections_of_their_own(sizes, projections):
    model = nn.Sequential(nn.MultiheadAttention(8, 2, **sizes))
    shapes = {name: tuple(weight.shape) for name, weight in weight_layers(model).items()}
    assert shapes == {f"0.{name}": shape for name, shape in projections.items()} | {"0.out_proj": (8, 8)}
    assert left_alone(model) == []


def test_a_shared_weight_has_the_name_of_the_first_that_has_it():
    model = nn.Sequential(nn.Linear(4, 4), nn.MultiheadAttention(4, 1), nn.MultiheadAttention(4, 1), nn.Linear(4, 4))
    model[2].in_proj_weight = model[1].in_proj_weight
    model[3].weight = model[0].weight
    assert list(weight_layers(model)) == ["0", "1.in_proj", "1.out_proj", "2.out_proj"]
    tied = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9))
    tied[1].weight = tied[0].weight
    assert list(weight_layers(tied)) == ["1"]
    assert left_alone(tied) == []


def test_a_module_that_is_used_twice_is_one_layer():
    shared = nn.Linear(4, 4)
    assert list(weight_layers(nn.Sequential(shared, nn.ReLU(), shared))) == ["0"]


def test_frozen_weights_are_layers_too():
    model = nn.Sequential(nn.Linear(4, 4))
    model.requires_grad_(False)
    assert list(weight_layers(model)) == ["0"]


def test_a_weight_that_is_no_plain_parameter_is_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)))
    with pytest.raises(UserError, match="the weight of 1 is not a plain parameter: remove its parametrization first"):
        weight_layers(model)
    model = nn.Sequential(nn.MultiheadAttention(4, 2))
    nn.utils.parametrizations.orthogonal(model[0], "in_proj_weight")
    with pytest.raises(UserError, match="the weights of 0 are not plain parameters: remove its parametrization first"):
        weight_layers(model)


def test_attention_as_the_whole_model_has_names_without_a_dot():
    assert list(weight_layers(nn.MultiheadAttention(8, 2))) == ["in_proj", "out_proj"]


def test_attention_whose_weights_are_no_parameters_is_refused_as_a_linear_is():
    model = nn.Sequential(nn.Linear(8, 8), nn.MultiheadAttention(8, 2))
    prune.identity(model[1], "in_proj_weight")
    with pytest.raises(UserError, match="the weights of 1 are not plain parameters"):
        weight_layers(model)
