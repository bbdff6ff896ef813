"""MACs against hand counts and published numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from st3 import Sparsifier
from st3.errors import UserError
from st3.measure import layer_macs
from st3.models import build_model
from st3.sparsify.layers import weight_layers


def sketch(name: str) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, classes=1000)


@pytest.mark.parametrize(
    ("name", "macs", "prunable"),
    [("resnet50", 4_089_184_256, 25_502_912), ("mobilenet_v1", 568_740_352, None)],
)
def test_published_counts_at_224(name, macs, prunable):
    model = sketch(name)
    assert sum(layer_macs(model, (3, 224, 224)).values()) == macs
    if prunable:
        assert Sparsifier(model).prunable == prunable


# (layer, input [C, H, W], MACs): output positions × weights of one output channel × output channels
LAYERS = {
    "3×3": (nn.Conv2d(2, 4, 3), (2, 10, 10), 8 * 8 * (2 * 9) * 4),
    "padding": (nn.Conv2d(2, 4, 3, padding=1), (2, 10, 10), 10 * 10 * (2 * 9) * 4),
    "stride": (nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 10, 10), 5 * 5 * (2 * 9) * 4),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), (4, 10, 10), 8 * 8 * (2 * 9) * 6),
    "depth-wise": (nn.Conv2d(4, 4, 3, groups=4, bias=False), (4, 10, 10), 8 * 8 * 9 * 4),
    "oblong": (nn.Conv2d(2, 4, (1, 3), dilation=2), (2, 10, 12), 10 * 8 * (2 * 3) * 4),
    "Linear on the last dimension": (nn.Linear(12, 5), (2, 10, 12), 2 * 10 * 12 * 5),
}


@pytest.mark.parametrize(("layer", "shape", "macs"), LAYERS.values(), ids=LAYERS.keys())
def test_one_layer_by_hand(layer, shape, macs):
    assert layer_macs(nn.Sequential(layer), shape) == {"0": macs}


def test_nothing_else_is_counted():
    model = nn.Sequential(
        nn.BatchNorm2d(2), nn.ReLU(), nn.Conv1d(6, 6, 1), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2 * 9, 3)
    )
    model[2] = nn.ConvTranspose2d(2, 2, 1)
    assert layer_macs(model, (2, 6, 6)) == {"5": 2 * 9 * 3}


class Twice(nn.Module):
    """A layer that runs at two sizes, another that shares its weight, one that never runs."""

    def __init__(self):
        super().__init__()
        self.conv, self.tied, self.idle = nn.Conv2d(2, 2, 3), nn.Conv2d(2, 2, 3, bias=False), nn.Linear(3, 3)
        self.tied.weight = self.conv.weight

    def forward(self, x):
        return self.tied(F.relu(self.conv(self.conv(x))))


def test_a_layer_that_runs_twice_and_shared_weights_are_summed():
    weights = 2 * 2 * 9
    assert layer_macs(Twice(), (2, 10, 10)) == {"conv": weights * (64 + 36 + 16), "idle": 0}


class Attention(nn.Module):
    """The pixels of an image attend to each other, or only the first `queries` of them to all."""

    def __init__(self, queries: int | None = None, **sizes):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True, **sizes)
        self.queries = queries

    def forward(self, x):
        pixels, attention = x.flatten(2).mT, self.attention  # [1, pixels, channels]
        if self.queries is None:
            return attention(pixels, pixels, pixels)[0]
        key, value = pixels[:, :, : attention.kdim], pixels[:, :, : attention.vdim]
        return attention(value=value, key=key, query=pixels[:, : self.queries, :4], need_weights=False)[0]


@pytest.mark.parametrize(("model", "queries"), [(Attention(), 15), (Attention(6), 6)])
def test_attention_uses_a_third_of_its_input_projection_at_each_query_key_and_value(model, queries):
    assert layer_macs(model, (4, 3, 5)) == {
        "attention.in_proj": (queries + 15 + 15) * 4 * 4,
        "attention.out_proj": queries * 4 * 4,
    }


def test_attention_with_keys_and_values_of_other_sizes():
    assert layer_macs(Attention(6, kdim=7, vdim=3), (8, 3, 5)) == {
        "attention.q_proj": 6 * 4 * 4,
        "attention.k_proj": 15 * 4 * 7,
        "attention.v_proj": 15 * 4 * 3,
        "attention.out_proj": 6 * 4 * 4,
    }


def test_a_vision_transformer_by_hand():
    model = sketch("vit_b_16")
    macs = layer_macs(model, (3, 224, 224))
    assert list(macs) == list(weight_layers(model))
    tokens, width = 14 * 14 + 1, 768
    names = "self_attention.in_proj", "self_attention.out_proj", "mlp.0", "mlp.3"
    for i in range(12):
        layer = [macs[f"encoder.layers.encoder_layer_{i}.{name}"] for name in names]
        assert layer == [tokens * width * width * times for times in (3, 1, 4, 4)]
    assert sum(macs.values()) == 12 * tokens * 12 * width**2 + 14 * 14 * width * 3 * 16**2 + 1000 * width


def test_a_layer_whose_weight_is_used_without_calling_it_is_counted():
    macs = layer_macs(sketch("swin_t"), (3, 224, 224))  # its attention works so
    assert macs["features.1.0.attn.qkv"] == 56 * 56 * 96 * 3 * 96
    assert min(macs.values()) > 0


def test_the_model_is_untouched():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    layer_macs(model, (2, 6, 6))
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 2, 2)])
def test_an_image_that_does_not_fit_is_the_users_to_mend(shape):
    with pytest.raises(UserError, match="×".join(map(str, shape))) as caught:
        layer_macs(nn.Sequential(nn.Conv2d(2, 3, 5)), shape)
    assert "\n" not in str(caught.value)
