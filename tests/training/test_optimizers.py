import pytest
import torch
from torch import nn

from st3.errors import UserError
from st3.training.optimizers import build_optimizer, parameter_groups


class Odd(nn.Module):
    """Conv, norm and Linear layers, a 2-D parameter that is neither, a tied weight, a frozen layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4)
        self.embed, self.scale = nn.Embedding(5, 4), nn.Parameter(torch.ones(4, 4))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4, bias=False)
        self.second.weight = self.first.weight
        self.frozen = nn.Linear(4, 2).requires_grad_(False)


def names(model, parameters) -> list[str]:
    known = {id(p): name for name, p in model.named_parameters()}
    return sorted(known[id(p)] for p in parameters)


def test_decay_acts_on_conv_and_linear_weights_only_and_on_a_tied_one_once():
    model = Odd()
    decayed, plain = parameter_groups(model, 0.01)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.01, 0)
    assert names(model, decayed["params"]) == ["conv.weight", "first.weight"]
    assert names(model, plain["params"]) == [
        "conv.bias", "embed.weight", "first.bias", "norm.bias", "norm.weight", "scale",
    ]  # fmt: skip


def test_groups_without_parameters_are_left_out():
    assert [len(g["params"]) for g in parameter_groups(nn.Linear(2, 2, bias=False), 0.1)] == [1]
    (only,) = parameter_groups(nn.BatchNorm1d(3), 0.1)
    assert only["weight_decay"] == 0


@pytest.mark.parametrize(
    ("name", "options"),
    [("sgd", {"momentum": 0.9, "nesterov": False}), ("adamw", {"betas": [0.9, 0.99], "eps": 1e-8})],
)
def test_with_zero_gradients_only_decayed_weights_shrink(name, options):
    model = Odd()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = build_optimizer(model, name, lr=0.5, weight_decay=0.1, **options)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for n, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if n in ("conv.weight", "first.weight") else 1  # SGD and AdamW alike
        torch.testing.assert_close(parameter.detach(), factor * before[n])


def test_settings_reach_the_optimizer():
    sgd = build_optimizer(nn.Linear(2, 2), "sgd", lr=0.3, weight_decay=0, momentum=0.875, nesterov=True)
    assert type(sgd) is torch.optim.SGD
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "nesterov")} == {
        "lr": 0.3, "momentum": 0.875, "nesterov": True,
    }  # fmt: skip
    adamw = build_optimizer(nn.Linear(2, 2), "adamw", lr=0.3, weight_decay=0, betas=[0.8, 0.9], eps=1e-6)
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["betas"], adamw.defaults["eps"]) == ((0.8, 0.9), 1e-6)


@pytest.mark.parametrize(
    ("name", "options", "about"),
    [
        ("sgd", {"momentum": -0.5, "nesterov": False}, "momentum"),
        ("sgd", {"momentum": 0.0, "nesterov": True}, "[Nn]esterov"),
        ("adamw", {"betas": [0.9, 2.0], "eps": 1e-8}, "beta"),
        ("lion", {}, "optimizer.name=lion"),
    ],
)
def test_what_pytorch_refuses_is_the_users_to_mend(name, options, about):
    with pytest.raises(UserError, match=about):
        build_optimizer(nn.Linear(2, 2), name, lr=0.1, weight_decay=0, **options)


def test_a_model_without_trainable_parameters_is_refused():
    with pytest.raises(UserError):
        build_optimizer(
            nn.Linear(2, 2).requires_grad_(False), "sgd", lr=0.1, weight_decay=0, momentum=0, nesterov=False
        )
