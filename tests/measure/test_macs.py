"""MACs against hand counts and published numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from st3 import Sparsifier
from st3.errors import UserError
from st3.measure import layer_macs
from st3.models import build_model


def sketch(name, **options) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **options)


@pytest.mark.parametrize(
    ("name", "macs", "prunable"),
    [("resnet50", 4_089_184_256, 25_502_912), ("mobilenet_v1", 568_740_352, None)],
)
def test_published_counts_at_224(name, macs, prunable):
    model = sketch(name, classes=1000)
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
    """Self-attention over the image's pixels; its output projection is a Linear layer inside nn.MultiheadAttention."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        tokens = x.flatten(2).mT
        return self.attention(tokens, tokens, tokens, need_weights=False)[0]


def test_the_output_projection_of_attention_is_counted():
    assert layer_macs(Attention(), (4, 3, 5)) == {"attention.out_proj": 15 * 4 * 4}


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
