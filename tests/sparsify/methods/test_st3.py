"""ST-3, ST-3σ, hard thresholding and the ablations: against layers that project their own weights."""

import copy
import math
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from helpers import RAMP, network, sgd, start, train, weights_of, zeros_of
from torch import Tensor, nn

from st3 import Sparsifier, UserError
from st3.sparsify import METHODS, ST3, Constant, PolynomialRamp
from st3.sparsify.costs import Costs, LayerCosts
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.projections import hard_threshold, rescale_factor, soft_threshold

ST3Sigma, HardSTE = METHODS["st3_sigma"], METHODS["hard_ste"]
VARIANTS = [
    ST3(),
    ST3Sigma(),
    HardSTE(),
    ST3(rescale=False),
    ST3(shrink="hard"),
    ST3(theta=0.0),
    ST3Sigma(theta=0.0, shrink="hard", rescale=False),
    ST3(exponent=3.0),
    ST3(gradient="rescaled"),
    ST3(dead_channels="masked", theta=0.5),
    ST3(gradient="rescaled", dead_channels="masked"),
    ST3Sigma(exponent=3.0, rescale=False, dead_channels="masked"),
]


class Projected(torch.autograd.Function):
    """Forward: the projection with a given threshold, from METHOD's equations; backward: a factor for each weight."""

    @staticmethod
    def forward(ctx, weight: Tensor, tau: Tensor, method: ST3) -> Tensor:
        rows = weight.flatten(1)
        mask = (rows.abs() > tau).to(weight.dtype)
        shrunk = mask * rows
        if method.shrink == "soft":
            p = method.exponent
            shrunk = torch.sign(rows) * ((rows.abs() ** p - tau**p) * mask) ** (1 / p)
        rho = ((rows.abs() * mask).mean(1) + 1e-6) / (rows.abs().mean(1) + 1e-6)
        kappa = (1.01 / (rho + 0.01))[:, None]
        factor = mask + method.theta * (1 - mask)
        if method.gradient == "rescaled":
            factor = factor * kappa
        if method.dead_channels == "masked":
            factor = factor * (mask.sum(1, keepdim=True) > 0)
        ctx.save_for_backward(factor.view_as(weight))
        return (shrunk * kappa if method.rescale else shrunk).view_as(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        [factor] = ctx.saved_tensors
        return gradient * factor, None, None


class Wrapped(nn.Module):
    """The network with raw weights, which each layer projects in every forward pass."""

    def __init__(self, model: nn.Sequential, method: ST3):
        super().__init__()
        self.model, self.method, self.sparsity = model, method, 0.0
        self.layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        scales = [sum(m.weight.shape) ** -0.5 if self.method.layer_sigma else 1.0 for m in self.layers]
        magnitudes = torch.cat([(m.weight.abs() / s).flatten() for m, s in zip(self.layers, scales, strict=True)])
        tau = torch.quantile(magnitudes, self.sparsity).detach() if self.sparsity else None
        for module in self.model:
            if module not in self.layers:
                x = module(x)
                continue
            weight = module.weight
            if tau is not None:
                weight = Projected.apply(weight, tau * scales[self.layers.index(module)], self.method)
            if isinstance(module, nn.Conv2d):
                x = F.conv2d(x, weight, module.bias, groups=module.groups)
            else:
                x = F.linear(x, weight, module.bias)
        return x


@pytest.mark.parametrize("method", VARIANTS, ids=str)
def test_training_equals_that_of_layers_which_project_their_weights(method):
    ramp = PolynomialRamp(final=0.9, start=3, end=20)
    model = network(torch.float64)
    wrapped = Wrapped(copy.deepcopy(model), method)
    optimizer, other = sgd(model), sgd(wrapped)
    sparsifier = Sparsifier(model, method, ramp).attach(optimizer)
    losses, expected = [], []
    for step in range(30):
        limit = 0.1 if step % 3 else None
        losses += train(model, optimizer, [step], torch.float64, clip=limit)
        expected += train(wrapped, other, [step], torch.float64, clip=limit)
        wrapped.sparsity = ramp.value(step)
    assert losses == pytest.approx(expected, abs=1e-12, rel=0)
    for raw, layer in zip(sparsifier.raw_weights().values(), wrapped.layers, strict=True):
        torch.testing.assert_close(raw, layer.weight.detach(), atol=1e-12, rtol=0)


# The projection -------------------------------------------------------------------------------------------------------


def project(method: ST3, raw: list[Tensor], sparsity: float, costs: Costs | None = None) -> tuple[list, Tensor]:
    """Sparse weights and thresholds."""
    sparse = [torch.empty_like(w) for w in raw]
    pruner = method.start(raw, RAMP, None)
    if costs is not None:
        pruner.weigh(costs)
    return sparse, pruner.project(FlatWeights.copy_of(raw), torch.tensor(sparsity, dtype=torch.float64), sparse)


def random(*shapes: tuple[int, ...]) -> list[Tensor]:
    torch.manual_seed(0)
    return [torch.randn(shape) * (1 + number) for number, shape in enumerate(shapes)]


@pytest.mark.parametrize("name", ["st3", "st3_sigma"])
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.9, 0.999])
def test_counts_are_exact_and_every_kept_magnitude_is_above_its_threshold(name, sparsity):
    raw = random((32, 16, 3, 3), (64, 1, 3, 3), (10, 640))
    sparse, thresholds = project(METHODS[name](), raw, sparsity)
    total = sum(w.numel() for w in raw)
    zeros = sum((w == 0).sum().item() for w in sparse)
    assert abs(zeros - sparsity * total) <= 1
    for w, projected, threshold in zip(raw, sparse, thresholds, strict=True):
        kept = projected != 0
        assert (w.abs()[kept] >= threshold * (1 - 1e-6)).all()
        assert (w.abs()[~kept] <= threshold * (1 + 1e-6)).all()
        assert (projected[kept].sign() == w[kept].sign()).all()


def test_one_global_threshold_against_one_per_layer_in_sigma():
    raw = random((32, 16, 3, 3), (10, 64))
    _, (first, second) = project(ST3(), raw, 0.7)
    assert first == second
    _, (first, second) = project(ST3Sigma(), raw, 0.7)
    assert (first / second).item() == pytest.approx(math.sqrt(74 / 54), rel=1e-6)


@pytest.mark.parametrize("name", ["st3", "st3_sigma", "hard_ste"])
def test_weighed_by_costs_the_requested_fraction_of_them_is_removed(name):
    raw, each = random((16, 8, 3, 3), (32, 16, 3, 3), (10, 32)), [1024, 256, 1]
    total = sum(cost * w.numel() for cost, w in zip(each, raw, strict=True))
    costs = [LayerCosts.of_macs(cost * w.numel(), w.numel()) for cost, w in zip(each, raw, strict=True)]
    sparse, _ = project(METHODS[name](), raw, 0.75, Costs("flops", costs))
    removed = sum(cost * (w == 0).sum().item() for cost, w in zip(each, sparse, strict=True))
    assert abs(removed - 0.75 * total) <= 1024
    plain, _ = project(METHODS[name](), raw, 0.75)
    assert any(not torch.equal(one, other) for one, other in zip(sparse, plain, strict=True))


def test_shrinking_and_rescaling_can_be_switched():
    raw = random((8, 32))
    sparse, (threshold,) = project(ST3(shrink="hard", rescale=False), raw, 0.5)
    assert torch.equal(sparse[0], hard_threshold(raw[0], threshold))
    sparse, _ = project(ST3(rescale=False), raw, 0.5)
    assert torch.equal(sparse[0], soft_threshold(raw[0], threshold))
    sparse, _ = project(ST3(), raw, 0.5)
    kappa = rescale_factor(raw[0], raw[0].abs() > threshold)
    assert torch.equal(sparse[0], soft_threshold(raw[0], threshold) * kappa)


def test_a_name_is_a_choice_of_settings():
    raw = random((8, 4, 3, 3), (10, 32))
    for name, spelled_out in (("st3_sigma", ST3(layer_sigma=True)), ("hard_ste", ST3(shrink="hard", rescale=False))):
        named, explicit = project(METHODS[name](), raw, 0.6), project(spelled_out, raw, 0.6)
        assert all(torch.equal(one, other) for one, other in zip(named[0], explicit[0], strict=True))


@pytest.mark.parametrize("method", [ST3(), ST3(rescale=False, exponent=3.0), ST3Sigma(), HardSTE()], ids=str)
@pytest.mark.parametrize("density", [1e-9, 0.02, 0.09])
def test_every_layer_keeps_its_share_and_the_total_is_exact(method, density):
    """Against a choice by sorting: first each layer's largest, then the largest of all that is left."""
    method = replace(method, min_density=density)
    shapes = (16, 4, 3, 3), (32, 16), (7, 32), (1, 1)
    raw = [w * scale for w, scale in zip(random(*shapes), (1, 1e-3, 1, 1e-6), strict=True)]
    sizes = [w.numel() for w in raw]
    sparse, thresholds = project(method, raw, 0.9)
    scales = [sum(w.shape) ** 0.5 if method.layer_sigma else 1.0 for w in raw]
    held, rest = [], []
    for layer, (w, scale) in enumerate(zip(raw, scales, strict=True)):
        order = (w.flatten().abs() * scale).sort(descending=True)
        kept = max(1, math.ceil(density * len(order.values)))
        held += [(layer, index) for index in order.indices[:kept].tolist()]
        rest += [
            (m, layer, i) for m, i in zip(order.values[kept:].tolist(), order.indices[kept:].tolist(), strict=True)
        ]
    zeros = math.floor(0.9 * (sum(sizes) - 1)) + 1
    rest.sort(reverse=True)
    chosen = {*held, *((layer, index) for _, layer, index in rest[: sum(sizes) - zeros - len(held)])}
    ours = {(layer, i) for layer, w in enumerate(sparse) for i in w.flatten().nonzero().flatten().tolist()}
    assert ours == chosen
    assert thresholds[1] < thresholds[0]
    without, _ = project(replace(method, min_density=0.0), raw, 0.9)
    assert not without[1].any()  # the layer that it is for


def test_a_dead_channel_lives_on_by_its_gradient_only_where_it_gets_one():
    weight = torch.tensor([[0.0, 0.5], [0.0, 0.0]])
    gradient = torch.ones(2, 2)
    for choice, expected in (("straight_through", [[1, 1], [1, 1]]), ("masked", [[1, 1], [0, 0]])):
        pruner = ST3(dead_channels=choice, gradient="straight_through").start([weight], RAMP, None)
        assert pruner.route(0, weight, weight + 0.1, gradient, 0).tolist() == expected


# What it claims -------------------------------------------------------------------------------------------------------


def test_zeroed_weights_keep_moving_and_come_back_without_a_jump():
    model, optimizer, sparsifier = start("st3", 0.5)
    train(model, optimizer, [0])
    before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    zeroed = zeros_of(sparsifier)
    train(model, optimizer, range(1, 10))
    assert all((w != before[name])[zeroed[name]].all() for name, w in sparsifier.raw_weights().items())
    assert all((w != 0).all() for w in sparsifier.raw_weights().values())
    assert any((w != 0)[zeroed[name]].any() for name, w in weights_of(sparsifier).items())


def test_a_masked_gradient_leaves_zeroed_weights_where_they_are():
    model, optimizer, sparsifier = start(ST3(theta=0.0), 0.5, make=partial(sgd, momentum=0, weight_decay=0))
    train(model, optimizer, [0])
    before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    zeroed = zeros_of(sparsifier)
    train(model, optimizer, [1])
    for name, raw in sparsifier.raw_weights().items():
        assert torch.equal(raw[zeroed[name]], before[name][zeroed[name]])
        assert not torch.equal(raw, before[name])


def test_sigma_costs_fewer_macs_at_the_same_sparsity():
    """The early convolutions are small, and see many places: in σ units they lose more."""
    removed = {}
    for name in ("st3", "st3_sigma"):
        model, optimizer, sparsifier = start(name, 0.8)
        train(model, optimizer, [0])
        zeros = dict(zip(sparsifier.pruned_layers, sparsifier.zeros().tolist(), strict=True))
        removed[name] = zeros["0"] * 64 + (zeros["3"] + zeros["4"]) * 36
    assert removed["st3_sigma"] > removed["st3"]


# What it refuses ------------------------------------------------------------------------------------------------------


def test_wrong_choices_are_refused_by_their_name():
    with pytest.raises(UserError, match=r"method\.shrink=medium is not known: choose soft or hard"):
        ST3(shrink="medium")
    with pytest.raises(UserError, match=r"method\.gradient=none is not known: choose straight_through or rescaled"):
        ST3(gradient="none")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"exponent": 0.5}, r"method.exponent=0.5 lies outside \[1, 100\]"),
        ({"exponent": 3.0, "shrink": "hard"}, "method.exponent=3 has no effect with method.shrink=hard"),
        (
            {"gradient": "rescaled", "rescale": False},
            "method.gradient=rescaled has no effect with method.rescale=false",
        ),
        ({"min_density": 1.0}, r"method.min_density=1 lies outside \[0, 1\)"),
        ({"theta": -0.1}, r"method.theta=-0.1 lies outside \[0, 1\]"),
    ],
)
def test_settings_that_cannot_be_or_would_do_nothing_are_refused(settings, says):
    with pytest.raises(UserError, match=says):
        ST3(**settings)


def test_a_density_for_every_layer_that_is_more_than_the_target_leaves_is_refused():
    raw = random((10, 10), (90, 10))
    ST3(min_density=0.1).start(raw, Constant(0.9), None)
    for density in (0.11, 0.101):  # of which each layer keeps a whole number
        with pytest.raises(UserError, match=r"keeps more weights than a sparsity of 0\.9"):
            ST3(min_density=density).start(raw, Constant(0.9), None)
