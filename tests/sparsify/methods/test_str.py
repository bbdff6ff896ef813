"""STR: one learned threshold for each layer."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import PHASES, RAMP, SPARSE, STEPS, Naive, batch, before_each_step, check_twin, network, start, train
from torch.func import functional_call

from st3 import Sparsifier, UserError
from st3.sparsify.methods import STR


class NaiveSTR(Naive):
    """By autograd: w and s are leaves, and the threshold is part of the graph."""

    def begin(self, state):
        self.scores = torch.full((len(self.pruned),), self.method.threshold_init, dtype=torch.float64)
        self.scores_buffer = torch.zeros_like(self.scores)
        self.decay = self.DECAY if self.method.threshold_decay is None else self.method.threshold_decay

    def project(self, name):
        threshold = torch.sigmoid(self.scores[self.pruned.index(name)])
        return torch.sign(self.raw[name]) * torch.relu(self.raw[name].abs() - threshold)

    def train(self, step, clip):
        images, labels = batch(step, torch.float64)
        leaves = {name: w.clone().requires_grad_() for name, w in self.raw.items()}
        scores = self.scores.clone().requires_grad_()
        used = dict(leaves)
        for name, s in zip(self.pruned, scores, strict=True):
            used[name] = torch.sign(leaves[name]) * torch.relu(leaves[name].abs() - torch.sigmoid(s))
        loss = F.cross_entropy(functional_call(self.model, used, images), labels)
        *found, pull = torch.autograd.grad(loss, [*leaves.values(), scores])
        scale = self.clip(found, clip)  # the gradient of s is not counted
        self.move({name: scale * g for name, g in zip(leaves, found, strict=True)})
        self.scores_buffer = self.MOMENTUM * self.scores_buffer + scale * pull + self.decay * self.scores
        self.scores = self.scores - self.LR * self.scores_buffer
        return loss.item()


@pytest.mark.parametrize("method", [STR(threshold_init=-3.0), STR(threshold_init=-4.0, threshold_decay=0.02)], ids=str)
def test_training_equals_the_naive_formulation(method):
    check_twin(NaiveSTR, method, SPARSE)


def test_the_gradient_of_the_thresholds_is_the_closed_form_and_autograds():
    model, optimizer, sparsifier = start(STR(threshold_init=-3.0), SPARSE, torch.float64)
    train(model, optimizer, range(3), torch.float64)  # so that the layers' thresholds differ
    raw = {f"{name}.weight": w.clone().requires_grad_() for name, w in sparsifier.raw_weights().items()}
    scores = sparsifier.state_dict()["method"]["scores"].requires_grad_()
    others = {name: p.detach().clone() for name, p in model.named_parameters() if name not in raw}
    images, labels = batch(3, torch.float64)

    used = {
        name: torch.sign(w) * torch.relu(w.abs() - torch.sigmoid(s))
        for (name, w), s in zip(raw.items(), scores, strict=True)
    }
    for w in used.values():
        w.retain_grad()
    F.cross_entropy(functional_call(copy.deepcopy(model), used | others, images), labels).backward()
    closed = []
    for (name, w), s in zip(raw.items(), scores.detach(), strict=True):
        sigma = 1 / (1 + math.exp(-s))
        closed.append((-used[name].grad * w.sign() * sigma * (1 - sigma) * (w.abs() > sigma)).sum().item())

    found = []
    [own] = optimizer.param_groups[-1]["params"]
    before_each_step(optimizer, lambda: found.extend(own.grad.tolist()))
    train(model, optimizer, [3], torch.float64)
    assert found == pytest.approx(closed, rel=1e-10)
    assert found == pytest.approx(scores.grad.tolist(), rel=1e-10)


def test_the_thresholds_decay_like_the_weights_unless_told_otherwise():
    for decay, expected in ((None, 5e-4), (0.0, 0.0), (0.02, 0.02)):
        model = network()
        groups = [{"params": model.parameters(), "weight_decay": 5e-4}]  # the optimizer's own default is 0
        optimizer = torch.optim.SGD(groups, lr=0.1)
        sparsifier = Sparsifier(model, STR(threshold_init=-100.0, threshold_decay=decay), 0.9).attach(optimizer)
        train(model, optimizer, [0])
        scores = sparsifier.state_dict()["method"]["scores"]
        # At −100 the sigmoid passes no gradient: only the decay moves them.
        torch.testing.assert_close(scores, torch.full_like(scores, -100 * (1 - 0.1 * expected)))


def zeros_after_training(init: float, decay: float) -> int:
    model, optimizer, sparsifier = start(STR(threshold_init=init, threshold_decay=decay), SPARSE)
    train(model, optimizer, range(20))
    return sparsifier.zeros().sum().item()


def test_the_sparsity_rises_with_start_value_and_decay():
    by_start = [zeros_after_training(init, 1e-3) for init in (-100.0, -6.0, -4.0, -2.0)]
    assert by_start == sorted(set(by_start))
    by_decay = [zeros_after_training(-6.0, decay) for decay in (0.0, 0.02, 0.1)]
    assert by_decay == sorted(set(by_decay))


def test_layers_learn_thresholds_of_their_own_and_are_sparse_at_once():
    model, optimizer, sparsifier = start(STR(threshold_init=-3.0), SPARSE)
    assert sparsifier.zeros().sum() > 0
    assert sparsifier.thresholds().tolist() == pytest.approx([1 / (1 + math.exp(3))] * 5)
    train(model, optimizer, range(5))
    assert len(set(sparsifier.thresholds().tolist())) == 5


def test_what_is_reached_are_the_zeros_whatever_the_schedule_says():
    model, optimizer, sparsifier = start(STR(threshold_init=-3.0), SPARSE)
    train(model, optimizer, range(STEPS))
    assert sparsifier.sparsity_is_outcome
    share = sparsifier.zeros().sum().item() / sparsifier.prunable
    assert share < 0.7  # so 0.8 is not what it came to
    assert sparsifier.reaches(share + 0.004)
    assert not sparsifier.reaches(share + 0.006)
    model, optimizer, sparsifier = start(STR(threshold_init=-3.0), 0.1)
    train(model, optimizer, range(10))
    assert sparsifier.reaches(0.2)


@pytest.mark.parametrize("schedule", [RAMP, PHASES], ids=["ramp", "phases"])
def test_a_schedule_that_is_not_constant_is_refused(schedule):
    with pytest.raises(UserError, match="follows no ramp: schedule=constant"):
        start(STR(), schedule)


def test_a_negative_decay_is_refused():
    with pytest.raises(UserError, match=r"method\.threshold_decay=-0.0001 must not be negative"):
        STR(threshold_decay=-1e-4)
