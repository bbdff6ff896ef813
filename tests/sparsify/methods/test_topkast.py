"""Top-KAST: a sparse forward pass, a larger sparse set in the backward pass."""

import copy
from functools import partial

import pytest
import torch
from helpers import PHASES, RAMP, SPARSE, Naive, adamw, check_twin, exact_zeros, sgd, start, train, zeros_of

from st3 import UserError
from st3.sparsify.methods import TopKAST


class NaiveTopKAST(Naive):
    def begin(self, state):
        self.density = 1 - self.schedule.sparsity
        self.choose()

    def choose(self):
        outside = max(self.schedule.sparsity - self.method.backward, 0)
        ordered = self.magnitudes().sort().values
        self.mask_above(ordered[exact_zeros(self.schedule.sparsity, self.total) - 1])
        least = ordered[exact_zeros(outside, self.total) - 1] if outside else -1
        self.reached = {name: self.raw[name].abs() > least for name in self.pruned}

    def route(self, step, name, gradient, used):
        return gradient * self.reached[name]

    def before(self, step, gradients):
        for name in self.pruned:
            active, reached, w = self.mask[name], self.reached[name], self.raw[name]
            rate = self.LR * self.method.decay
            self.raw[name] = torch.where(active, w - rate * w, torch.where(reached, w - rate / self.density * w, w))
        self.frozen = {name: self.raw[name].clone() for name in self.pruned}

    def after(self, step, sparsity):
        for name in self.pruned:  # momentum and decay reach B only
            self.raw[name] = torch.where(self.reached[name], self.raw[name], self.frozen[name])
        self.choose()


@pytest.mark.parametrize("method", [TopKAST(), TopKAST(backward=1.0, decay=0.01)], ids=["published", "B is all"])
def test_training_equals_the_naive_formulation(method):
    check_twin(NaiveTopKAST, method, SPARSE)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_it_is_sparse_at_every_moment(make):
    model, optimizer, sparsifier = start(TopKAST(), SPARSE, make=make)
    for step in range(12):
        assert sparsifier.zeros().sum() == exact_zeros(0.8, sparsifier.prunable)
        train(model, optimizer, [step])
    assert sparsifier.zeros().sum() == exact_zeros(0.8, sparsifier.prunable)


def test_the_gradient_reaches_a_larger_set_and_stops_there():
    plain = partial(sgd, momentum=0, weight_decay=0)
    model, optimizer, sparsifier = start(TopKAST(backward=0.3, decay=0.0), 0.8, make=plain)
    came_back = 0
    for step in range(15):
        before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
        zeroed = zeros_of(sparsifier)
        state = sparsifier.state_dict()["method"]
        for key, outside in (("active", 0.8), ("reached", 0.5)):
            inside = sum(mask.sum().item() for mask in state[key])
            assert inside == sparsifier.prunable - exact_zeros(outside, sparsifier.prunable)
        train(model, optimizer, [step])
        now = zeros_of(sparsifier)
        for (name, raw), active, reached in zip(
            sparsifier.raw_weights().items(), state["active"], state["reached"], strict=True
        ):
            assert torch.equal(active, ~zeroed[name])
            assert not (active & ~reached).any()
            assert torch.equal(raw[~reached], before[name][~reached])
            # Not all have a gradient: what follows them may be zeroed, too.
            assert (raw != before[name])[reached].float().mean() > 0.5
            came_back += (zeroed[name] & ~now[name]).sum().item()
    assert came_back > 0


def test_the_extra_decay_is_stronger_outside_a():
    plain = partial(sgd, momentum=0, weight_decay=0)
    model, optimizer, sparsifier = start(TopKAST(backward=0.3, decay=0.01), 0.8, torch.float64, plain)
    before = {name: w.clone() for name, w in sparsifier.raw_weights().items()}
    state = copy.deepcopy(sparsifier.state_dict()["method"])
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, active, reached in zip(before, state["active"], state["reached"], strict=True):
        factor = sparsifier.raw_weights()[name] / before[name]
        expected = 1 - 0.1 * 0.01 * (active.double() + (reached & ~active).double() / 0.2)
        torch.testing.assert_close(factor, expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("schedule", [RAMP, PHASES], ids=["ramp", "phases"])
def test_a_schedule_that_is_not_constant_is_refused(schedule):
    with pytest.raises(UserError, match="follows no ramp: schedule=constant"):
        start(TopKAST(), schedule)


def test_wrong_values_are_refused_by_their_name():
    with pytest.raises(UserError, match=r"method.backward=-0.1 lies outside \[0, 1\]"):
        TopKAST(backward=-0.1)
    with pytest.raises(UserError, match=r"method\.decay=-1 must not be negative"):
        TopKAST(decay=-1.0)
