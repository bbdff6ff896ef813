"""What weights cost: how zeros are spread by it, and what a target of time is reached with."""

import itertools
import math

import pytest
import torch
from helpers import network, sgd, start, train, zeros_of
from torch import Tensor

from st3 import Sparsifier, UserError
from st3.sparsify import METHODS, ST3, Constant, LayerTimes, PolynomialRamp
from st3.sparsify.costs import FEMTOSECONDS, Costs, LayerCosts
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.projections import cost_scales, sigma
from st3.sparsify.thresholds import layer_thresholds, weighted_quantile

PLACES = {"0": 64, "3": 36, "4": 36, "7": 1, "9": 1}
"""Output pixels of the layers of `network`."""
SIZES = {name: network().get_submodule(name).weight.numel() for name in PLACES}
MACS = {name: PLACES[name] * size for name, size in SIZES.items()}


def times(weights: int, even: float, ms_per_weight: float = 1e-3, base_ms: float = 0.02) -> LayerTimes:
    """The sparse kernel is as fast as the dense one where the fraction `even` of the weights is left."""
    dense_ms = base_ms + even * weights * ms_per_weight
    return LayerTimes(weights=weights, dense_ms=dense_ms, base_ms=base_ms, ms_per_weight=ms_per_weight)


def modelled(layers: list[LayerTimes], zeros: list[int]) -> float:
    return sum(layer.ms(layer.weights - count) for layer, count in zip(layers, zeros, strict=True))


# Thresholds by what a weight costs ------------------------------------------------------------------------------------


def test_scales_are_powers_of_the_costs_over_their_geometric_mean():
    assert cost_scales([1, 4, 16], 0.5) == pytest.approx([0.5, 1, 2])  # 1, 2, 4 over their mean 2
    assert cost_scales([3e-7, 3e-7 * 8], 2 / 3) == pytest.approx([0.5, 2])
    assert cost_scales([5, 70, 900], 0.0) == [1, 1, 1]
    assert math.prod(cost_scales([5, 70, 900], 1.7)) == pytest.approx(1)


def spread(method: ST3, raw: list[Tensor], costs: list[float], sparsity: float) -> tuple[list[Tensor], Tensor]:
    pruner, sparse = method.start(raw, Constant(sparsity), None), [torch.empty_like(w) for w in raw]
    pruner.scale_by(costs)
    return sparse, pruner.project(FlatWeights.copy_of(raw), torch.tensor(sparsity, dtype=torch.float64), sparse)


def test_three_layers_by_hand():
    raw = [torch.tensor([[1.0, -2, 3, 4]]), torch.tensor([[1.0, 2, -3, 4]]), torch.tensor([[1.0, 2, 3, -4]])]
    sparse, thresholds = spread(ST3(shrink="hard", rescale=False, cost_exponent=0.5), raw, [1, 4, 16], 0.5)
    # Over their scales 0.5, 1, 2 the magnitudes are 2 4 6 8, 1 2 3 4 and 0.5 1 1.5 2: the quantile of 1/2 is 2.
    torch.testing.assert_close(thresholds, torch.tensor([1.0, 2, 4]))
    assert [part.tolist() for part in sparse] == [[[0, -2, 3, 4]], [[0, 0, -3, 4]], [[0, 0, 0, 0]]]


@pytest.mark.parametrize("name", ["st3", "st3_sigma", "hard_ste", "feather"])
def test_thresholds_are_in_the_ratio_of_the_scales_and_the_count_is_exact(name):
    torch.manual_seed(0)
    raw = [torch.randn(16, 8, 3, 3), torch.randn(32, 16, 3, 3), torch.randn(10, 32)]
    method, costs = METHODS[name](cost_exponent=0.3), [1024.0, 256.0, 1.0]
    sparse, found = spread(method, raw, costs, 0.7)
    own = [sigma(w.shape) if method.layer_sigma else 1 for w in raw]
    expected = torch.tensor([scale * of_cost for scale, of_cost in zip(own, cost_scales(costs, 0.3), strict=True)])
    torch.testing.assert_close(found / found[0], expected / expected[0])
    total = sum(w.numel() for w in raw)
    assert abs(sum(int((w == 0).sum()) for w in sparse) - 0.7 * total) <= 1
    for weight, was, threshold in zip(sparse, raw, found, strict=True):
        away = (was.abs() / threshold - 1).abs() > 1e-6  # of weights at the threshold rounding decides
        assert ((weight == 0) == (was.abs() <= threshold))[away].all()


def test_layers_that_cost_the_same_have_one_threshold_to_the_last_bit():
    torch.manual_seed(0)
    raw = [torch.randn(8, 9), torch.randn(8, 5)]
    plain = [torch.empty_like(w) for w in raw]
    pruner = ST3().start(raw, Constant(0.6), None)
    pruner.project(FlatWeights.copy_of(raw), torch.tensor(0.6, dtype=torch.float64), plain)
    for one, other in zip(spread(ST3(cost_exponent=2.0), raw, [7.0, 7.0], 0.6)[0], plain, strict=True):
        assert torch.equal(one, other)


def macs_left(sparsifier: Sparsifier) -> int:
    return sum(MACS[name] - PLACES[name] * int(zeros.sum()) for name, zeros in zeros_of(sparsifier).items())


def test_in_training_the_sparsity_is_exact_and_macs_fall_with_the_exponent():
    found = []
    for exponent in (0.0, 0.25, 1.0):
        model, optimizer, sparsifier = start(ST3(cost_exponent=exponent), 0.8, macs=MACS)
        train(model, optimizer, range(5))
        assert abs(int(sparsifier.zeros().sum()) - 0.8 * sparsifier.prunable) <= 1
        found.append(macs_left(sparsifier))
    assert found[0] > found[1] > found[2]


def test_it_goes_together_with_a_target_of_macs_and_of_time():
    model, optimizer, sparsifier = start(ST3(cost_exponent=0.5), 0.8, target="flops", macs=MACS)
    train(model, optimizer, range(3))
    assert abs(macs_left(sparsifier) - 0.2 * sum(MACS.values())) <= max(PLACES.values())
    layers = {name: times(size, 0.6, ms_per_weight=PLACES[name] * 1e-5) for name, size in SIZES.items()}
    for cost in ("macs", "time"):
        method = ST3(cost_exponent=0.5, cost=cost)
        model, optimizer, sparsifier = start(method, 0.5, target="latency", macs=MACS, times=layers)
        train(model, optimizer, range(3))
        left = modelled([*layers.values()], sparsifier.zeros().tolist())
        assert abs(left - 0.5 * sum(each.dense_ms for each in layers.values())) <= 64.001e-5


def test_by_time_is_by_the_time_of_one_weight():
    layers = {name: times(size, 0.6, ms_per_weight=PLACES[name] * 1e-5) for name, size in SIZES.items()}
    by_macs = start(ST3(cost_exponent=0.5), 0.8, macs=MACS)
    by_time = start(ST3(cost_exponent=0.5, cost="time"), 0.8, times=layers)  # which is in proportion to its MACs
    assert train(*by_macs[:2], range(3)) == pytest.approx(train(*by_time[:2], range(3)), rel=1e-5)
    torch.testing.assert_close(by_macs[2].thresholds(), by_time[2].thresholds())


# What removing weights saves ------------------------------------------------------------------------------------------

EVENS = {"pays late": 0.3, "pays soon": 0.95, "pays at once": 1.5, "never pays": 0.0, "pays for one weight": 0.01}


@pytest.mark.parametrize("even", EVENS.values(), ids=EVENS)
def test_the_costs_of_a_layer_add_up_to_what_its_time_falls_by(even):
    layer = times(100, even)
    costs = LayerCosts.of_times(layer)
    expected = [round((layer.dense_ms - layer.ms(100 - zeros)) * FEMTOSECONDS) for zeros in range(101)]
    assert [costs.saved(zeros) for zeros in range(101)] == pytest.approx(expected, abs=200)  # half of one for each
    torch.manual_seed(0)
    magnitudes = torch.rand(100)
    ranked = costs.of_ranks(magnitudes)
    assert ranked.dtype == torch.int64
    added = [0, *itertools.accumulate(ranked[magnitudes.argsort()].tolist())]
    assert added == [costs.saved(zeros) - costs.saved(0) for zeros in range(101)]


def test_a_break_even_between_two_weights_loses_nothing():
    layer = LayerTimes(weights=10, dense_ms=1.0, base_ms=0.5, ms_per_weight=0.2)  # even at 2.5 weights
    costs = LayerCosts.of_times(layer)
    ranked = costs.of_ranks(torch.arange(10.0).flip(0))
    assert [each / FEMTOSECONDS for each in ranked.tolist()] == [0.2, 0.2, 0.1, 0, 0, 0, 0, 0, 0, 0]


def test_macs_are_as_they_were_to_the_last_bit():
    costs = Costs("flops", [LayerCosts.of_macs(640, 10), LayerCosts.of_macs(3 * 7, 7)])
    assert [costs.share(q) for q in (0.1, 1 / 3, 0.987)] == [0.1, 1 / 3, 0.987]
    assert costs.share(torch.tensor(0.9, dtype=torch.float64)) == torch.tensor(0.9, dtype=torch.float64)
    assert costs.of_ranks([torch.rand(10), torch.rand(7)]).tolist() == [64] * 10 + [3] * 7


LAYERS = [
    times(300, 0.3),
    times(500, 0.6, 2e-3),
    times(200, 1.4, 5e-3),
    times(400, 0.0, 1e-2),
    times(250, 0.9, 3e-4, 0.0),
]


@pytest.mark.parametrize("sparsity", [0.001, 0.2, 0.35, 0.6, 0.8, 0.9])
@pytest.mark.parametrize("seed", range(4))
def test_a_target_of_time_is_met_within_the_time_of_one_weight(sparsity, seed):
    torch.manual_seed(seed)
    magnitudes = torch.cat([torch.rand(1) * torch.rand(each.weights) for each in LAYERS])
    sizes = [each.weights for each in LAYERS]
    costs = Costs("latency", [LayerCosts.of_times(each) for each in LAYERS])
    threshold = layer_thresholds(magnitudes, sizes, sparsity, costs=costs)[0]
    zeros = [int((part <= threshold).sum()) for part in magnitudes.split(sizes)]
    dense = sum(each.dense_ms for each in LAYERS)
    at_once = dense - modelled(LAYERS, [0] * 5)  # what is saved with no weight removed
    assert at_once / dense == pytest.approx(0.4 / 2.2375)
    removed = dense - modelled(LAYERS, zeros)
    assert abs(removed - max(sparsity * dense, at_once)) <= 5e-3 + 1e-9
    assert costs.removed(zeros) == pytest.approx(removed / dense, abs=1e-9)
    assert layer_thresholds(magnitudes, sizes, torch.tensor(sparsity, dtype=torch.float64), costs=costs)[0] == threshold


@pytest.mark.parametrize("q", [0.0, 1e-9, 0.3, 0.5, 0.99])
def test_values_that_cost_nothing_go_with_the_next_that_does(q):
    torch.manual_seed(0)
    for free in (0.5, 0.99):
        values = torch.rand(1000, dtype=torch.float64)
        costs = torch.randint(1, 1000, (1000,)) * (torch.rand(1000) > free)
        removed = costs[values <= weighted_quantile(values, costs, q)].sum().item()
        assert abs(removed - q * costs.sum().item()) <= costs.max().item()
    last = torch.tensor([0, 0, 0, 5])
    assert weighted_quantile(torch.tensor([1.0, 2, 3, 4]), last, 0.1) == 4  # it is the one that there is


def test_weights_that_tie_share_one_fate_whatever_they_save():
    costs = Costs("latency", [LayerCosts.of_times(times(6, 0.5))])
    magnitudes = torch.tensor([0.3, 0.1, 0.3, 0.3, 0.3, 0.9])  # the ties reach over the break-even
    assert sorted(costs.of_ranks([magnitudes]).tolist()) == [0] * 3 + [FEMTOSECONDS // 1000] * 3
    threshold = layer_thresholds(magnitudes, [6], 0.01, costs=costs)[0]
    assert (magnitudes <= threshold).tolist() == [True, True, True, True, True, False]


def test_a_layer_that_gains_nothing_is_pruned_by_the_common_threshold_only():
    torch.manual_seed(0)
    pays, never = times(500, 1.0), times(500, 0.0)
    magnitudes = torch.rand(1000)
    together = Costs("latency", [LayerCosts.of_times(pays), LayerCosts.of_times(never)])
    found = layer_thresholds(magnitudes, [500, 500], 0.4, costs=together)
    alone = 0.4 * (pays.dense_ms + never.dense_ms) / pays.dense_ms
    expected = layer_thresholds(magnitudes[:500], [500], alone, costs=Costs("latency", [LayerCosts.of_times(pays)]))
    assert found[0] == found[1]
    assert abs(int((magnitudes[:500] <= found[0]).sum()) - int((magnitudes[:500] <= expected[0]).sum())) <= 1


# In a sparsifier ------------------------------------------------------------------------------------------------------


def all_times(even: float = 0.6, **changes) -> dict[str, LayerTimes]:
    return {name: times(size, even) for name, size in SIZES.items()} | changes


def test_how_far_it_has_come_is_said_of_time():
    model, optimizer, sparsifier = start("st3", 0.5, target="latency", times=all_times())
    assert not sparsifier.reaches(0.01)
    train(model, optimizer, range(3))
    assert sparsifier.reaches(0.5)
    assert not sparsifier.reaches(0.52)
    assert sparsifier.zeros().sum() > 0.6 * sparsifier.prunable  # nothing is saved before 40 % of the weights are gone


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "latency"}, r"^target=latency needs times of every pruned layer$"),
        ({"target": "latency", "times": {k: v for k, v in all_times().items() if k != "7"}},
         r"^times has no 7, which is pruned: measure this network, or exclude=\[7\]$"),
        ({"target": "latency", "times": all_times(**{"4": times(5, 0.5)})},
         r"^times is of another network: 4 has 5 weights there, 288 here$"),
        ({"target": "latency", "times": all_times(0.0)},
         r"^target=latency has nothing to remove: in no pruned layer a sparse kernel is faster$"),
        ({"method": ST3(cost_exponent=1.0)}, r"^method\.cost_exponent needs macs of every pruned layer"),
        ({"method": ST3(cost_exponent=1.0), "macs": MACS | {"9": 0}},
         r"^method\.cost_exponent cannot weigh 9, which has no MACs: exclude=\[9\]$"),
        ({"method": ST3(cost_exponent=1.0, cost="time")}, r"^method\.cost=time needs times of every pruned layer$"),
        ({"method": ST3(cost_exponent=1.0, cost="time"), "times": all_times(**{"3": times(72, 1.0, 0.0)})},
         r"^method\.cost=time cannot weigh 3, whose weights take no time: exclude=\[3\]$"),
    ],
)  # fmt: skip
def test_costs_that_are_missing_or_of_others_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        Sparsifier(network(), schedule=0.5, **options)


def test_more_than_can_be_removed_is_refused_and_what_is_named_can_be():
    layers = all_times(0.6, **{"7": times(SIZES["7"], 0.6, base_ms=0.9)})
    most = 1 - sum(each.base_ms for each in layers.values()) / sum(each.dense_ms for each in layers.values())
    with pytest.raises(UserError) as caught:
        Sparsifier(network(), "st3", PolynomialRamp(final=0.95, start=0, end=5), target="latency", times=layers)
    message, named = str(caught.value).rsplit("=", 1)
    assert message == "sparsity=0.95 is more than target=latency can remove from the pruned layers: at most sparsity"
    assert most - 1e-4 <= float(named) < most
    model = network()
    optimizer = sgd(model, lr=0.01)
    sparsifier = Sparsifier(model, "st3", float(named), target="latency", times=layers).attach(optimizer)
    train(model, optimizer, range(2))
    assert sparsifier.reaches(float(named))


def test_what_every_layer_keeps_cannot_be_removed():
    settings = {"target": "latency", "times": all_times(0.9)}
    Sparsifier(network(), "st3", 0.85, **settings)
    with pytest.raises(UserError, match=r"^sparsity=0\.85 is more than target=latency .*at most sparsity=0\.\d+$"):
        Sparsifier(network(), ST3(min_density=0.2), 0.85, **settings)


@pytest.mark.parametrize(
    "numbers",
    [
        {"weights": 0}, {"dense_ms": -1.0}, {"base_ms": math.nan}, {"ms_per_weight": math.inf}, {"dense_ms": 1e6},
        {"ms_per_weight": 1e5},
    ],
)  # fmt: skip
def test_numbers_that_are_no_times_are_refused(numbers):
    with pytest.raises(UserError, match=rf"^{next(iter(numbers))}="):
        LayerTimes(**{"weights": 10, "dense_ms": 1.0, "base_ms": 0.5, "ms_per_weight": 0.1} | numbers)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_nothing_waits_and_the_threshold_is_that_of_the_cpu():
    torch.manual_seed(0)
    magnitudes, sizes = torch.rand(sum(each.weights for each in LAYERS)), [each.weights for each in LAYERS]
    costs = Costs("latency", [LayerCosts.of_times(each) for each in LAYERS])
    there, sparsity = magnitudes.cuda(), torch.tensor(0.6, dtype=torch.float64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        found = layer_thresholds(there, sizes, sparsity, costs=costs)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found.item() == layer_thresholds(magnitudes, sizes, 0.6, costs=costs)[0].item()
