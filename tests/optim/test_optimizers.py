import pytest
import torch
import torchvision
from torch import nn

from st3.errors import UserError
from st3.models import build_model
from st3.optim import OPTIMIZERS, parameter_groups
from st3.optim.optimizers import SGD, AdamW


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


def test_decay_reaches_the_input_projections_of_attention_and_no_embedding():
    with torch.device("meta"):
        model = torchvision.models.VisionTransformer(32, 16, 2, 2, 16, 32)
    decayed, plain = (names(model, group["params"]) for group in parameter_groups(model, 0.01))
    blocks = [f"encoder.layers.encoder_layer_{number}" for number in (0, 1)]
    kinds = "mlp.0.weight", "mlp.3.weight", "self_attention.in_proj_weight", "self_attention.out_proj.weight"
    assert decayed == sorted(
        ["conv_proj.weight", "heads.head.weight", *(f"{block}.{kind}" for block in blocks for kind in kinds)]
    )
    assert {"class_token", "encoder.pos_embedding", f"{blocks[0]}.self_attention.in_proj_bias"} <= set(plain)


UNDECAYED_ARRAYS = {
    "vit_tiny": {"class_token", "pos_embedding"},
    "vit_b_16": {"class_token", "pos_embedding"},
    "convnext_tiny": {"layer_scale"},
    "swin_t": {"relative_position_bias_table"},
}
"""Last parts of the names of parameters of two and more dimensions that are learned vectors and no layer's weight."""


@pytest.mark.parametrize("name", UNDECAYED_ARRAYS)
def test_decay_in_torchvisions_transformers_and_convnexts_reaches_matrices_and_kernels_only(name):
    with torch.device("meta"):
        model = build_model(name, classes=10, image_size=32)
    decayed, plain = (names(model, group["params"]) for group in parameter_groups(model, 0.05))
    arrays = {key for key, p in model.named_parameters() if p.ndim > 1}
    exempt = {key for key in arrays if key.rpartition(".")[2] in UNDECAYED_ARRAYS[name]}
    assert {key.rpartition(".")[2] for key in exempt} == UNDECAYED_ARRAYS[name]
    assert set(decayed) == arrays - exempt
    assert sorted(decayed + plain) == sorted(key for key, _ in model.named_parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto", "swin_tiny_patch4_window7_224"])
def test_decay_in_timms_networks_is_where_timm_puts_it(name):
    timm, theirs = pytest.importorskip("timm"), pytest.importorskip("timm.optim")
    with torch.device("meta"):
        model = timm.create_model(name)
    listed = getattr(model, "no_weight_decay", set)()
    without, with_decay = theirs.param_groups_weight_decay(model, 0.05, no_weight_decay_list=listed)
    decayed, plain = parameter_groups(model, 0.05)
    assert names(model, decayed["params"]) == names(model, with_decay["params"])
    assert names(model, plain["params"]) == names(model, without["params"])


def test_decay_reaches_convolutions_of_any_dimension_and_attention_with_keys_of_another_size():
    model = nn.ModuleList([nn.Conv1d(2, 2, 3), nn.Conv3d(2, 2, 3), nn.MultiheadAttention(4, 1, kdim=3, vdim=2)])
    decayed, _ = parameter_groups(model, 0.01)
    assert names(model, decayed["params"]) == [
        "0.weight", "1.weight", "2.k_proj_weight", "2.out_proj.weight", "2.q_proj_weight", "2.v_proj_weight",
    ]  # fmt: skip


def test_groups_without_parameters_are_left_out():
    assert [len(g["params"]) for g in parameter_groups(nn.Linear(2, 2, bias=False), 0.1)] == [1]
    (only,) = parameter_groups(nn.BatchNorm1d(3), 0.1)
    assert only["weight_decay"] == 0


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_with_zero_gradients_only_decayed_weights_shrink(kind):
    model = Odd()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = kind(lr=0.5, weight_decay=0.1).build(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for n, parameter in model.named_parameters():
        factor = 1 - 0.5 * 0.1 if n in ("conv.weight", "first.weight") else 1  # SGD and AdamW alike
        torch.testing.assert_close(parameter.detach(), factor * before[n])


def test_settings_reach_the_optimizer():
    sgd = SGD(lr=0.3, momentum=0.875, nesterov=True).build(nn.Linear(2, 2))
    assert type(sgd) is torch.optim.SGD
    assert {k: sgd.defaults[k] for k in ("lr", "momentum", "nesterov")} == {
        "lr": 0.3, "momentum": 0.875, "nesterov": True,
    }  # fmt: skip
    adamw = AdamW(lr=0.3, betas=[0.8, 0.9], eps=1e-6).build(nn.Linear(2, 2))
    assert type(adamw) is torch.optim.AdamW
    assert (adamw.defaults["lr"], adamw.defaults["betas"], adamw.defaults["eps"]) == (0.3, (0.8, 0.9), 1e-6)


@pytest.mark.parametrize(
    ("kind", "settings", "says"),
    [
        (SGD, {"lr": 0.0}, "optimizer.lr=0 must be positive"),
        (AdamW, {"lr": float("inf")}, "optimizer.lr=inf must be a finite number"),
        (SGD, {"lr": float("nan")}, "optimizer.lr=nan must be a finite number"),
        (AdamW, {"weight_decay": -0.1}, "optimizer.weight_decay=-0.1 must not be negative"),
        (SGD, {"momentum": -0.5}, "optimizer.momentum=-0.5 lies outside [0, 1)"),
        (AdamW, {"eps": -1e-8}, "optimizer.eps=-1e-08 must not be negative"),
        (AdamW, {"betas": [0.9]}, "must be two numbers in [0, 1): optimizer.betas=[0.9,0.999]"),
        (AdamW, {"betas": [0.9, 2.0]}, "must be two numbers in [0, 1): optimizer.betas=[0.9,0.999]"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(kind, settings, says):
    with pytest.raises(UserError) as caught:
        kind(**settings)
    assert says in str(caught.value)


def test_nesterov_needs_a_momentum():
    with pytest.raises(UserError, match=r"^optimizer\.nesterov=true needs a momentum"):
        SGD(momentum=0.0, nesterov=True)


@pytest.mark.parametrize("kind", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_model_without_trainable_parameters_is_refused(kind):
    with pytest.raises(UserError, match=r"^optimizer: "):
        kind().build(nn.Linear(2, 2).requires_grad_(False))
