"""Exact zeros of every own architecture after one step, and the totals that follow from them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from st3 import Sparsifier
from st3.measure import SparsityMeter, format_table, layer_macs, layer_table, totals
from st3.models import ModelConfig, build_model
from st3.sparsify import LayerState


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("resnet20", {}, 16),
        ("wide_resnet", {"depth": 10, "width": 2, "dropout": 0.2}, 16),
        ("vgg11_bn", {}, 32),
        ("mobilenet_v1", {"width": 0.25}, 32),
        ("mobilenet_v2", {}, 32),
        ("resnet18", {}, 32),
    ],
)
def test_every_architecture_holds_exactly_the_scheduled_zeros(name, options, size):
    torch.manual_seed(0)
    model = build_model(ModelConfig(name=name, **options), classes=7, image_size=size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    sparsifier = Sparsifier(model, "st3", 0.9).attach(optimizer)
    macs = layer_macs(model, (3, size, size))
    F.cross_entropy(model(torch.randn(2, 3, size, size)), torch.tensor([0, 6])).backward()
    optimizer.step()

    kinds = {f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    weights = [value for key, value in model.state_dict().items() if key in kinds]
    count, zeros = sum(w.numel() for w in weights), sum(int((w == 0).sum()) for w in weights)
    assert abs(zeros - 0.9 * count) <= 1
    total = totals(layer_table(sparsifier.layers(), macs))
    assert (total.prunable, total.zeros, total.macs_dense) == (count, zeros, sum(macs.values()))
    assert total.sparsity == pytest.approx(0.9, abs=1 / count)

    # The work that is left: each non-zero weight once at each output position.
    work: list[int] = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(lambda m, _, out: work.append(int((m.weight != 0).sum()) * positions(m, out)))
    with torch.no_grad():
        model.eval()(torch.randn(1, 3, size, size))
    assert total.macs == sum(work) < total.macs_dense
    assert SparsityMeter(sparsifier, macs)()["macs"] == sum(work)


def positions(module, output) -> int:
    return output.shape[2] * output.shape[3] if isinstance(module, nn.Conv2d) else 1


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3, bias=False), nn.Flatten(), nn.Linear(2 * 16, 4))


def test_layers_left_dense_cost_fully_and_do_not_count_as_prunable():
    model = small()
    macs = layer_macs(model, (1, 6, 6))
    assert macs == {"0": 16 * 18, "2": 128}
    sparsifier = Sparsifier(model, "st3", 0.75, exclude=["0"])
    with torch.no_grad():
        model[0].weight[0] = 0  # 9 zeros that nobody asked for
        model[2].weight[:3] = 0
    conv, linear = layer_table(sparsifier.layers(), macs)
    assert (conv.name, conv.shape, conv.params, conv.pruned, conv.zeros) == ("0", "2×1×3×3", 18, False, 9)
    assert (linear.pruned, linear.zeros, linear.sparsity, linear.macs) == (True, 96, 0.75, 32)
    total = totals([conv, linear])
    assert (total.prunable, total.zeros, total.sparsity) == (128, 96, 0.75)
    assert (total.macs_dense, total.macs) == (288 + 128, 144 + 32)


def test_weights_of_cross_attention_cost_the_mean_of_their_layer():
    # Two tokens look at three: 2 + 3 + 3 positions for the three parts of [12, 4], so that no weight costs the mean.
    state = LayerState(name="in_proj", shape=(12, 4), pruned=True, zeros=24, threshold=0.1)
    (row,) = layer_table([state], {"in_proj": 4 * 4 * 8})
    assert (row.macs_dense, row.macs) == (128, 64)
    (dense,) = layer_table([replace(state, zeros=0)], {"in_proj": 4 * 4 * 8})
    assert dense.macs == 128


def test_before_the_first_step_nothing_is_saved():
    model = small()
    macs = layer_macs(model, (1, 6, 6))
    sparsifier = Sparsifier(model, "st3", 0.5)
    total = totals(layer_table(sparsifier.layers(), macs))
    assert (total.zeros, total.macs) == (0, 416)
    assert SparsityMeter(sparsifier, macs)() == {
        "sparsity_scheduled": 0.0, "sparsity": 0.0, "threshold": 0.0, "macs": 416, "dead_layers": 0,
    }  # fmt: skip


def test_the_meter_says_what_the_table_says():
    model = small()
    macs = layer_macs(model, (1, 6, 6))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparsifier = Sparsifier(model, "st3_sigma", 0.5).attach(optimizer)
    model(torch.randn(2, 1, 6, 6)).sum().backward()
    optimizer.step()
    rows = layer_table(sparsifier.layers(), macs)
    total, meter = totals(rows), SparsityMeter(sparsifier, macs)()
    assert meter["sparsity"] == total.zeros / 146
    assert meter["macs"] == total.macs
    assert meter["sparsity_scheduled"] == 0.5
    assert meter["threshold"] == pytest.approx((rows[0].threshold + rows[1].threshold) / 2)


def test_the_table_as_text_ends_with_the_totals():
    model = small()
    lines = format_table(layer_table(Sparsifier(model).layers(), layer_macs(model, (1, 6, 6)))).splitlines()
    assert len(lines) == 1 + 2 + 1
    assert lines[-1].split() == ["total", "146", "2", "of", "2", "0", "0.00%", "416", "416"]
