import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from st3 import Sparsifier
from st3.sparsify import ST3, Constant, PolynomialRamp
from st3.sparsify.flat_weights import FlatWeights
from st3.training.ema import RawAverage

DECAY = 0.5


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
    )


def setup(schedule, model=None, **options):
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sparsifier = Sparsifier(model, "st3", schedule, **options).attach(optimizer)
    return model, optimizer, sparsifier, RawAverage(model, sparsifier, DECAY)


def step(model, optimizer, number: int) -> None:
    generator = torch.Generator().manual_seed(number)
    images = torch.randn(8, 2, 6, 6, generator=generator)
    loss = F.cross_entropy(model(images), torch.randint(3, (8,), generator=generator))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def averaged(values: list[torch.Tensor]) -> torch.Tensor:
    """The average by its definition, in float64; values[0] is what it starts from."""
    average = values[0].double()
    for t, value in enumerate(values[1:], start=1):
        decay = min(DECAY, (1 + t) / (10 + t))
        average = decay * average + (1 - decay) * value.double()
    return average


def train_with_history(schedule, steps: int, **options):
    """(model, sparsifier, average, name → all values so far), names as in the state dict, raw where pruned."""
    model, optimizer, sparsifier, average = setup(schedule, **options)
    history = {name: [value.clone()] for name, value in model.state_dict().items()}
    for number in range(steps):
        step(model, optimizer, number)
        average.update()
        raw = {f"{layer}.weight": weight for layer, weight in sparsifier.raw_weights().items()}
        for name, value in (model.state_dict() | raw).items():
            history[name].append(value.clone())
    return model, sparsifier, average, history


def test_the_network_is_the_projection_of_the_average_of_the_raw_weights():
    model, sparsifier, average, history = train_with_history(PolynomialRamp(final=0.8, start=4, end=12), 20)
    assert DECAY < (1 + 20) / (10 + 20)  # the warm-up of the decay is over
    network = average.network().state_dict()
    raw = [averaged(history[f"{layer}.weight"]) for layer in sparsifier.pruned_layers]
    expected = [torch.empty_like(w) for w in raw]
    ST3().start(raw, Constant(0.8), None).project(
        FlatWeights.copy_of(raw), torch.tensor(0.8, dtype=torch.float64), expected
    )
    for layer, projected in zip(sparsifier.pruned_layers, expected, strict=True):
        torch.testing.assert_close(network[f"{layer}.weight"].double(), projected, atol=1e-5, rtol=1e-4)
    for name in ("1.weight", "1.bias", "1.running_mean", "1.running_var", "4.bias"):
        torch.testing.assert_close(network[name].double(), averaged(history[name]), atol=1e-6, rtol=1e-5)
    assert network["1.num_batches_tracked"] == 20
    assert not torch.allclose(network["4.bias"], model.state_dict()["4.bias"])


def test_it_is_exactly_as_sparse_as_the_model():
    _, sparsifier, average, _ = train_with_history(0.75, 5)
    network = average.network()
    zeros = sum(int((network.get_submodule(layer).weight == 0).sum()) for layer in sparsifier.pruned_layers)
    assert abs(zeros - 0.75 * sparsifier.prunable) <= 1


def test_layers_that_are_not_pruned_are_averaged_and_stay_dense():
    _, _, average, history = train_with_history(0.75, 5, exclude=["4"])
    weight = average.network()[4].weight
    torch.testing.assert_close(weight.detach().double(), averaged(history["4.weight"]), atol=1e-6, rtol=1e-5)


def test_during_the_dense_phase_it_is_the_plain_average():
    _, _, average, history = train_with_history(PolynomialRamp(final=0.8, start=50, end=60), 5)
    for name, value in average.network().state_dict().items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), averaged(history[name]), atol=1e-6, rtol=1e-5)


def test_averaging_changes_nothing_in_training():
    model, optimizer, _, average = setup(0.5)
    other, other_optimizer, _, _ = setup(0.5)
    for number in range(4):
        step(model, optimizer, number)
        average.update()
        average.network()
        step(other, other_optimizer, number)
    for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_the_network_is_a_copy():
    model, optimizer, _, average = setup(0.5)
    step(model, optimizer, 0)
    average.update()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    network = average.network()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(7)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(not (value == 7).any() for value in average.network().parameters())


def test_continued_from_its_state_it_is_the_uninterrupted_one():
    def run(interrupted: bool):
        model, optimizer, sparsifier, average = setup(0.6)
        for number in range(8):
            if interrupted and number == 4:
                objects = (model, optimizer, sparsifier, average)
                saved = [copy.deepcopy(each.state_dict()) for each in objects]
                model, optimizer, sparsifier, average = objects = setup(0.6)
                for each, state in zip(objects, saved, strict=True):
                    each.load_state_dict(state)
            step(model, optimizer, number)
            average.update()
        return average.network().state_dict()

    whole, continued = run(False), run(True)
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[name], continued[name]) for name in whole)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.second(F.relu(self.first(x)))


@pytest.mark.parametrize("model", [Tied(), nn.Linear(6, 6)], ids=["tied", "bare layer"])
def test_tied_weights_and_a_bare_layer(model):
    model, optimizer, sparsifier, average = setup(0.5, model)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.ones(2, 6)).square().sum().backward()
        optimizer.step()
        average.update()
    network = average.network()
    layer = network.get_submodule(sparsifier.pruned_layers[0])
    assert abs(int((layer.weight == 0).sum()) - 18) <= 1
    if isinstance(network, Tied):
        assert network.second.weight is network.first.weight


def test_finish_puts_the_projected_average_into_the_model():
    model, sparsifier, average, _ = train_with_history(PolynomialRamp(final=0.6, start=2, end=8), steps=12)
    expected = {name: value.clone() for name, value in average.network().state_dict().items()}
    average.finish()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    for layer in sparsifier.layers():
        raw = sparsifier.raw_weights()[layer.name]
        assert torch.equal(raw.abs() > layer.threshold, model.get_submodule(layer.name).weight != 0)
