"""Which parameters are the weights of layers, also those of attention."""

import pytest
import torch
from helpers import network
from torch import nn
from torch.nn.utils import prune

from st3 import Sparsifier, UserError
from st3.models import build_model
from st3.optim.optimizers import AdamW
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


@pytest.mark.parametrize(
    ("name", "prunable", "layers"),
    [
        # the patches or the stem, blocks, the merging of patches in between, the classifier for 1000 classes
        ("vit_b_16", 768 * 768 + 12 * 12 * 768**2 + 768_000, 1 + 12 * 4 + 1),
        (
            "convnext_tiny",
            96 * 48 + sum(n * (49 * d + 8 * d * d) for n, d in ((3, 96), (3, 192), (9, 384), (3, 768)))
            + sum(4 * d * 2 * d for d in (96, 192, 384)) + 768_000,
            1 + 18 * 3 + 3 + 1,
        ),
        (
            "swin_t",
            96 * 48 + sum(n * 12 * d * d for n, d in ((2, 96), (2, 192), (6, 384), (2, 768)))
            + sum(4 * d * 2 * d for d in (96, 192, 384)) + 768_000,
            1 + 12 * 4 + 3 + 1,
        ),
        ("timm/vit_tiny_patch16_224", 192 * 768 + 12 * 12 * 192**2 + 192_000, 1 + 12 * 4 + 1),
        (
            "timm/convnext_atto",
            40 * 48 + sum(n * (49 * d + 8 * d * d) for n, d in ((2, 40), (2, 80), (6, 160), (2, 320)))
            + sum(4 * d * 2 * d for d in (40, 80, 160)) + 320_000,
            1 + 12 * 3 + 3 + 1,
        ),
    ],
)  # fmt: skip
def test_transformers_and_convnexts_are_pruned_in_every_matrix_and_kernel(name, prunable, layers):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    with torch.device("meta"):
        sparsifier = Sparsifier(build_model(name, classes=1000), schedule=0.9)
    assert (sparsifier.prunable, len(sparsifier.pruned_layers)) == (prunable, layers)


@pytest.mark.parametrize("name", ["vit_tiny", "timm/convnext_atto"])
def test_adamw_makes_them_exactly_as_sparse_as_asked_and_leaves_the_rest_dense(name):
    if name.startswith("timm/"):
        pytest.importorskip("timm")
    torch.manual_seed(0)
    model = build_model(name, classes=5, image_size=32)
    head = list(weight_layers(model))[-1]
    optimizer = AdamW().build(model)
    sparsifier = Sparsifier(model, schedule=0.9, exclude=[head]).attach(optimizer)
    for _ in range(2):  # the class token starts at 0, and gets no gradient while the classifier is 0
        nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert abs(sparsifier.zeros().sum() - 0.9 * sparsifier.prunable) <= 1
    pruned = {id(weight) for weight in sparsifier.weights.values()}
    for key, parameter in model.named_parameters():
        if id(parameter) not in pruned and key.endswith(("embedding", "class_token", "gamma", head + ".weight")):
            assert (parameter != 0).all(), key


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
