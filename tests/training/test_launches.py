"""The forward pass in fewer launches: the same bits, with less for the device to be told."""

import copy
from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from graph_cases import PLAN, Graphs, Watcher, assert_same_training, images, make_state, network
from helpers import assert_same
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_cases import train_epoch

from st3.measure import layer_macs
from st3.models import build_model
from st3.training.launches import FewerLaunches
from st3.training.machine import Machine
from st3.training.step import CapturedStep, EagerStep


class Launched(TorchDispatchMode):
    """Counts the operations that give the device something to do."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        name = operation.name().removeprefix("aten::")
        if not name.startswith(("empty", "detach", "view", "t", "expand", "unsqueeze")) or name.startswith("threshold"):
            self.operations[name] += 1
        return operation(*args, **kwargs or {})


def passes(forward, machine: Machine) -> Launched:
    """Two training passes, forward and back."""
    batches = torch.randn(2, 8, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    with Launched() as launched:
        for each in batches:
            with machine.autocast():
                loss = F.cross_entropy(forward(each.contiguous(memory_format=torch.channels_last)), torch.arange(8))
            loss.backward()
    return launched


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_gradients_and_statistics_are_the_same_bits_with_fewer_operations(precision):
    machine = Machine(torch.device("cpu"), precision)
    model = build_model("resnet20", classes=10).to(memory_format=torch.channels_last)
    other = copy.deepcopy(model)
    usual, fewer = passes(model, machine), passes(FewerLaunches(other, machine), machine)
    assert_same(other.state_dict(), model.state_dict())
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one.grad, two.grad)
        assert (two.grad.dtype, two.grad.stride()) == (torch.float32, one.grad.stride())
    saved = usual.operations.total() - fewer.operations.total()
    layers = 22
    casts = 2 * (layers + 1) - 2 if precision == "bf16" else 0  # of weights and a bias, there and back, in one each
    assert saved == 2 * (casts + (layers - 1) - 1)


def test_a_layer_that_needs_the_number_of_its_batches_counts_them_itself():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8, momentum=None), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    other, machine = copy.deepcopy(model), Machine(torch.device("cpu"))
    passes(model, machine)
    passes(FewerLaunches(other, machine), machine)
    assert_same(other.state_dict(), model.state_dict())
    assert model[1].num_batches_tracked == 2


def test_a_pass_that_fails_leaves_the_network_as_it_was():
    model = build_model("resnet20", classes=10)
    forward, keys = FewerLaunches(model, Machine(torch.device("cpu"))), list(model.state_dict())
    with pytest.raises(RuntimeError):
        forward(torch.randn(2, 5, 16, 16))
    assert list(model.state_dict()) == keys


def test_captured_training_with_it_is_called_training_without(monkeypatch):
    graphs, runs = Graphs(monkeypatch), []
    machine = Machine(torch.device("cpu"), "bf16")
    for captured in (False, True):
        # Counted in MACs, because the other threshold is found on the host where weights are there.
        state, watcher = make_state(target="flops", macs=layer_macs(network(), (3, 8, 8))), Watcher()
        forward = FewerLaunches(state.model, machine) if captured else state.model
        eager = EagerStep(state, PLAN, machine, forward)
        step = CapturedStep(eager, required=True) if captured else eager
        train_epoch(state, images(30), PLAN, machine, step, watcher, dict)
        runs.append((state, watcher))
    assert graphs.replays > 15
    assert_same_training(*runs)
