import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from st3 import Sparsifier, UserError
from st3.measure import layer_macs
from st3.sparsify import AlternatingPhases, PolynomialRamp
from st3.sparsify.methods import GMP, GraNet, RigL, TopKAST


def network(dtype=torch.float32) -> nn.Module:
    """Plain, grouped and depth-wise convolutions with and without bias, BatchNorm, two Linear layers."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 16, 3, groups=4, bias=False),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 32),
        nn.ReLU(),
        nn.Linear(32, 5),
    ).to(dtype)


def batch(step: int, dtype=torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(16, 3, 10, 10, generator=generator, dtype=dtype)
    return images, torch.randint(5, (16,), generator=generator)


def sgd(model, **options):
    settings = {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3} | options
    return torch.optim.SGD(model.parameters(), **settings)


def train(model, optimizer, steps, dtype=torch.float32, clip=None) -> list[float]:
    losses = []
    for step in steps:
        images, labels = batch(step, dtype)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        losses.append(loss.item())
    return losses


RAMP = PolynomialRamp(final=0.9, start=5, end=25)


# Equality with a second formulation ---------------------------------------------------------------------------------


class StraightThrough(torch.autograd.Function):
    """Forward: ST-3's projection with a given threshold, from METHOD's equations; backward: the identity."""

    @staticmethod
    def forward(ctx, weight, tau):
        mask = (weight.abs() > tau).to(weight.dtype)
        shrunk = (weight - torch.sign(weight) * tau) * mask
        rows = weight.flatten(1).abs()
        rho = ((rows * mask.flatten(1)).mean(1) + 1e-6) / (rows.mean(1) + 1e-6)
        kappa = 1.01 / (rho + 0.01)
        return shrunk * kappa.view(-1, *[1] * (weight.ndim - 1))

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class NaiveSparse(nn.Module):
    """The network with every prunable layer wrapped: raw parameters, projected in each forward pass."""

    def __init__(self, model, per_layer):
        super().__init__()
        self.model, self.per_layer, self.sparsity = model, per_layer, 0.0
        self.layers = [m for m in model if isinstance(m, nn.Conv2d | nn.Linear)]

    def forward(self, x):
        scales = [sum(m.weight.shape) ** -0.5 if self.per_layer else 1.0 for m in self.layers]
        magnitudes = torch.cat([(m.weight.abs() / s).flatten() for m, s in zip(self.layers, scales, strict=True)])
        tau = torch.quantile(magnitudes, self.sparsity) if self.sparsity else None
        for module in self.model:
            if module in self.layers:
                scale = scales[self.layers.index(module)]
                weight = module.weight if tau is None else StraightThrough.apply(module.weight, tau.detach() * scale)
                if isinstance(module, nn.Conv2d):
                    x = F.conv2d(x, weight, module.bias, groups=module.groups)
                else:
                    x = F.linear(x, weight, module.bias)
            else:
                x = module(x)
        return x


@pytest.mark.parametrize("method", ["st3", "st3_sigma"])
def test_forty_steps_equal_the_naive_formulation(method):
    model = network(torch.float64)
    naive = NaiveSparse(copy.deepcopy(model), per_layer=method == "st3_sigma")
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, method, RAMP).attach(optimizer)
    losses = train(model, optimizer, range(40), torch.float64, clip=3.0)

    other, expected = sgd(naive), []
    for step in range(40):
        expected += train(naive, other, [step], torch.float64, clip=3.0)
        naive.sparsity = RAMP.value(step)
    assert losses == pytest.approx(expected, abs=1e-12, rel=0)
    for raw, layer in zip(sparsifier.raw_weights().values(), naive.layers, strict=True):
        torch.testing.assert_close(raw, layer.weight.detach(), atol=1e-12, rtol=0)


# Invariants ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["st3", "st3_sigma", "dense"])
def test_ramp_at_zero_is_dense_training_bit_for_bit(method):
    plain, sparse = network(), network()
    expected = train(plain, sgd(plain), range(10))
    optimizer = sgd(sparse)
    Sparsifier(sparse, method, 0.0).attach(optimizer)
    assert train(sparse, optimizer, range(10)) == expected
    for ours, theirs in zip(sparse.state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs)


def test_dense_method_is_dense_training_at_any_schedule():
    plain, sparse = network(), network()
    optimizer = sgd(sparse)
    Sparsifier(sparse, "dense", 0.9).attach(optimizer)
    assert train(sparse, optimizer, range(10)) == train(plain, sgd(plain), range(10))


@pytest.mark.parametrize("make", [sgd, lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3)])
def test_counts_follow_the_schedule_and_raw_weights_stay_dense(make):
    model = network()
    optimizer = make(model)
    sparsifier = Sparsifier(model, "st3", RAMP).attach(optimizer)
    total = sparsifier.prunable
    assert total == sum(m.weight.numel() for m in model if isinstance(m, nn.Conv2d | nn.Linear))
    for step in range(30):
        train(model, optimizer, [step])
        assert sparsifier.sparsity == RAMP.value(step)
        assert abs(sparsifier.zeros().sum().item() - sparsifier.sparsity * total) <= 1
    assert all((raw != 0).all() for raw in sparsifier.raw_weights().values())
    for layer in sparsifier.layers():
        raw, weight = sparsifier.raw_weights()[layer.name], model.get_submodule(layer.name).weight
        assert torch.equal(raw.abs() > layer.threshold, weight != 0)
        assert layer.zeros == (weight == 0).sum().item()


def test_zeroed_weights_keep_moving_and_come_back():
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.5).attach(optimizer)
    train(model, optimizer, [0])
    before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    zeroed = {name: model.get_submodule(name).weight == 0 for name in before}
    train(model, optimizer, range(1, 15))
    moved = [(w != before[name])[zeroed[name]].all() for name, w in sparsifier.raw_weights().items()]
    assert all(moved)
    assert any((model.get_submodule(name).weight != 0)[zeroed[name]].any() for name in before)


def test_masked_gradient_leaves_zeroed_weights_where_they_are():
    from st3.sparsify import ST3

    model = network()
    optimizer = sgd(model, momentum=0, weight_decay=0)
    sparsifier = Sparsifier(model, ST3(gradient="masked"), 0.5).attach(optimizer)
    train(model, optimizer, [0])
    before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    zeroed = {name: model.get_submodule(name).weight == 0 for name in before}
    train(model, optimizer, [1])
    for name, raw in sparsifier.raw_weights().items():
        assert torch.equal(raw[zeroed[name]], before[name][zeroed[name]])
        assert not torch.equal(raw, before[name])


def test_model_stays_an_ordinary_module():
    model = network()
    keys = list(model.state_dict())
    optimizer = sgd(model)
    Sparsifier(model, "st3", 0.8).attach(optimizer)
    train(model, optimizer, range(3))
    assert list(model.state_dict()) == keys
    assert type(model[0]) is nn.Conv2d
    assert type(model[0].weight) is nn.Parameter
    untouched = network()
    untouched.load_state_dict(model.state_dict())
    images, _ = batch(0)
    assert torch.equal(untouched.eval()(images), copy.deepcopy(model).eval()(images))


def test_channels_last_changes_nothing_but_rounding():
    runs = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        model = network(torch.float64).to(memory_format=memory_format)
        optimizer = sgd(model)
        Sparsifier(model, "st3", 0.7).attach(optimizer)
        runs.append(train(model, optimizer, range(8), torch.float64))
    assert runs[0] == pytest.approx(runs[1], abs=1e-10)


def test_several_parameter_groups_and_frozen_weights():
    model = network()
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    groups = [{"params": model[9].parameters(), "lr": 0.01}]
    groups += [{"params": [p for m in model[:9] for p in m.parameters() if p.requires_grad]}]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, "st3", 0.8).attach(optimizer)
    train(model, optimizer, range(3))
    assert torch.equal(model[0].weight, frozen)
    assert [layer.pruned for layer in sparsifier.layers()] == [False, True, True, True, True]
    assert abs(sparsifier.zeros().sum().item() - 0.8 * sparsifier.prunable) <= 1


def test_tied_weights_count_once():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 5)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.last(self.second(self.first(x.flatten(1)[:, :6])))

    model = Tied()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.5).attach(optimizer)
    train(model, optimizer, range(3))
    assert sparsifier.prunable == 36 + 30
    assert model.second.weight is model.first.weight
    assert abs(sparsifier.zeros().sum().item() - 33) <= 1
    assert layer_macs(model, (3, 2, 2)) == {"first": 72, "last": 30}


def test_include_and_exclude_choose_layers():
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.9, include=["[347]", "9"], exclude=["9"]).attach(optimizer)
    assert sparsifier.pruned_layers == ["3", "4", "7"]
    train(model, optimizer, [0])
    assert [layer.zeros > 0 for layer in sparsifier.layers()] == [False, True, True, True, False]


def test_flops_target_in_training():
    model = network()
    macs = layer_macs(model, (3, 10, 10))
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.8, target="flops", macs=macs).attach(optimizer)
    train(model, optimizer, range(3))
    per_weight = {
        layer.name: macs[layer.name] // model.get_submodule(layer.name).weight.numel() for layer in sparsifier.layers()
    }
    removed = sum(layer.zeros * per_weight[layer.name] for layer in sparsifier.layers())
    assert abs(removed - 0.8 * sum(macs.values())) <= max(per_weight.values())


# Steps that do not happen, states that are restored ------------------------------------------------------------------


def test_a_skipped_step_changes_nothing():
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", RAMP).attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)

    def step(poison: bool):
        images, labels = batch(0)
        optimizer.zero_grad()
        scaler.scale(F.cross_entropy(model(images), labels)).backward()
        if poison:
            model[0].weight.grad[0, 0, 0, 0] = float("inf")
        scaler.step(optimizer)
        scaler.update()

    for _ in range(12):
        step(poison=False)
    weights = [p.detach().clone() for p in model.parameters()]
    raw = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    sparsity, count = sparsifier.sparsity, sparsifier.step
    step(poison=True)
    assert (sparsifier.sparsity, sparsifier.step) == (sparsity, count)
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert all(torch.equal(w, raw[name]) for name, w in sparsifier.raw_weights().items())


@pytest.mark.parametrize(
    ("method", "schedule"),
    [
        ("st3", RAMP),
        (GMP(every=4), RAMP),
        (GraNet(every=4), RAMP),
        (RigL(every=4), 0.9),
        (TopKAST(decay=0.1), 0.9),
        ("acdc", AlternatingPhases(final=0.9, start=4, period=8, last_dense=20, end=24)),
    ],
    ids=["st3", "gmp", "granet", "rigl", "topkast", "acdc"],
)
def test_a_skipped_step_of_a_fused_optimizer_changes_nothing(method, schedule):
    # Fused optimizers check the scaler's found_inf themselves, so their hooks run on skipped steps too.
    model = network()
    optimizer = sgd(model, fused=True)
    sparsifier = Sparsifier(model, method, schedule).attach(optimizer)
    train(model, optimizer, range(12))  # step 12 would be one that changes masks
    weights = [p.detach().clone() for p in model.parameters()]
    before = copy.deepcopy((sparsifier.state_dict(), optimizer.state_dict()["state"]))
    optimizer.found_inf, optimizer.grad_scale = torch.ones(()), torch.ones(())
    train(model, optimizer, [12])
    assert sparsifier.step == 12
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    torch.testing.assert_close((sparsifier.state_dict(), optimizer.state_dict()["state"]), before, rtol=0, atol=0)


@pytest.mark.parametrize("after", [3, 12])
def test_state_dict_restores_everything(after):
    def start():
        model = network()
        optimizer = sgd(model)
        return model, optimizer, Sparsifier(model, "st3", RAMP).attach(optimizer)

    model, optimizer, sparsifier = start()
    train(model, optimizer, range(after))
    state = copy.deepcopy([model.state_dict(), optimizer.state_dict(), sparsifier.state_dict()])
    expected = train(model, optimizer, range(after, 30))

    model, optimizer, restored = start()
    train(model, optimizer, range(17))  # whatever happened before is overwritten
    for part, saved in zip((model, optimizer, restored), state, strict=True):
        part.load_state_dict(saved)
    assert restored.step == after
    assert train(model, optimizer, range(after, 30)) == expected
    assert [x.zeros for x in restored.layers()] == [x.zeros for x in sparsifier.layers()]


def test_detach_ends_it():
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.9).attach(optimizer)
    train(model, optimizer, [0])
    sparsifier.detach()
    train(model, optimizer, [1])
    assert sparsifier.step == 1
    assert sparsifier.zeros().sum() < 10


# What is refused ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "st4"}, "st4 does not exist"),
        ({"schedule": 1.0}, r"\[0, 1\)"),
        ({"include": ["conv*"]}, "no Conv2d or Linear layer is named like 'conv"),
        ({"include": ["3"], "exclude": ["[0-9]"]}, "no layer is left to prune"),
        ({"exclude": "3"}, "is a list of patterns"),
        ({"target": "params"}, "target=params"),
        ({"target": "flops"}, "needs macs"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(UserError, match=message):
        Sparsifier(network(), **options)


def test_refused_models():
    with pytest.raises(UserError, match="nothing to prune"):
        Sparsifier(nn.BatchNorm2d(3))
    with pytest.raises(UserError, match="float32"):
        Sparsifier(network().half())
    with pytest.raises(UserError, match="not a plain parameter"):
        Sparsifier(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)))


def test_refused_attachments():
    model = network()
    sparsifier = Sparsifier(model)
    with pytest.raises(UserError, match="does not hold the weight of 0"):
        sparsifier.attach(torch.optim.SGD(model[9].parameters(), lr=0.1))
    optimizer = sgd(model)
    sparsifier.attach(optimizer)
    with pytest.raises(UserError, match="attached already"):
        sparsifier.attach(optimizer)
    with pytest.raises(UserError, match="closure"):
        optimizer.step(lambda: 0.0)


def test_weights_changed_behind_its_back_are_noticed():
    model = network()
    optimizer = sgd(model)
    Sparsifier(model, "st3", 0.9).attach(optimizer)
    train(model, optimizer, [0])
    model.load_state_dict(network().state_dict())
    with pytest.raises(UserError, match="changed or moved outside"):
        train(model, optimizer, [1])


def test_loading_pretrained_weights_before_the_ramp_is_fine():
    model, other = network(), network()
    nn.init.ones_(other[7].weight)
    optimizer = sgd(model)
    Sparsifier(model, "st3", RAMP).attach(optimizer)
    train(model, optimizer, [0])
    model.load_state_dict(other.state_dict())
    train(model, optimizer, [1])
    assert (model[7].weight > 0.5).all()


def test_a_checkpoint_restores_after_a_step_that_raised():
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", PolynomialRamp(final=0.9, start=2, end=6)).attach(optimizer)
    train(model, optimizer, range(2))
    saved = copy.deepcopy((model.state_dict(), sparsifier.state_dict()))
    assert not saved[1]["raw"]  # dense so far
    train(model, optimizer, range(2, 5))
    optimizer.param_groups[0]["lr"] = "high"
    with pytest.raises(TypeError):
        train(model, optimizer, [5])
    model.load_state_dict(saved[0])
    sparsifier.load_state_dict(saved[1])
    for name, value in model.state_dict().items():
        assert torch.equal(value, saved[0][name]), name


def test_it_follows_a_model_that_was_converted_once_its_state_is_loaded_again():
    model = network()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, "st3", 0.5).attach(optimizer)
    train(model, optimizer, range(3))
    state = sparsifier.state_dict()
    model.double()
    optimizer = sgd(model)
    sparsifier.detach()
    sparsifier.load_state_dict(state)
    sparsifier.attach(optimizer)
    train(model, optimizer, range(3, 6), torch.float64)
    assert {w.dtype for w in sparsifier.raw_weights().values()} == {torch.float64}
    assert abs(sparsifier.zeros().sum().item() - 0.5 * sparsifier.prunable) <= 1


def test_two_parameters_in_one_memory_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight.data = model[0].weight.data
    with pytest.raises(UserError, match="weights of 0 and 1 are two parameters in one memory"):
        Sparsifier(model)
