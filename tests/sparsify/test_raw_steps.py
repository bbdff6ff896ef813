"""HAM against its equation, with several methods, and where it must do nothing."""

import math

import pytest
import torch
from helpers import (
    PHASES,
    RAMP,
    SPARSE,
    STEPS,
    Naive,
    adamw,
    assert_same,
    check_twin,
    sgd,
    smooth,
    start,
    states,
    train,
)

from st3 import Sparsifier, UserError
from st3.sparsify.methods import ACDC, ST3, Dense, Feather, RigL
from st3.sparsify.raw_steps import HAM, RawStep

ALPHA, BETA = 3.0, 0.02


class NaiveHAM(Naive):
    """Dense training in which every weight of two and more dimensions is multiplied after SGD's own step."""

    def move(self, gradients):
        super().move(gradients)
        for name, w in self.raw.items():
            if w.ndim > 1:
                exponent = self.LR * (-ALPHA * torch.sign(w) * gradients[name] - BETA)
                self.raw[name] = w * torch.exp(exponent.clamp(-5, 5))

    def route(self, step, name, gradient, used):
        return gradient


def test_training_equals_the_naive_formulation():
    check_twin(NaiveHAM, Dense(), SPARSE, raw_step=HAM(alpha=ALPHA, beta=BETA))


@pytest.mark.parametrize(
    ("method", "schedule"),
    [(ST3(), RAMP), (Feather(), RAMP), (RigL(every=4, until=22), SPARSE), (ACDC(), PHASES)],
    ids=["st3", "feather", "rigl", "acdc"],
)
@pytest.mark.parametrize("make", [sgd, adamw])
def test_it_goes_with_any_method_to_the_same_zeros_and_continues_to_the_same_bits(method, schedule, make, tmp_path):
    def begin():
        return start(method, schedule, make=make, raw_step=HAM(alpha=ALPHA, beta=BETA))

    whole = begin()
    losses = train(*whole[:2], range(15))
    torch.save(states(*whole), tmp_path / "half.pt")
    losses += train(*whole[:2], range(15, STEPS))
    assert all(map(math.isfinite, losses))
    assert abs(whole[2].zeros().sum().item() - 0.8 * whole[2].prunable) <= 1

    other = begin()
    for part, state in zip(other, torch.load(tmp_path / "half.pt", weights_only=True), strict=True):
        part.load_state_dict(state)
    assert train(*other[:2], range(15, STEPS)) == losses[15:]
    assert_same(states(*other), states(*whole))


def test_with_both_factors_zero_it_is_the_plain_step_bit_for_bit():
    runs = []
    for raw_step in (RawStep(), HAM(alpha=0.0, beta=0.0)):
        model, optimizer, _ = start(ST3(), RAMP, raw_step=raw_step)
        runs.append((train(model, optimizer, range(STEPS)), [*model.parameters()]))
    assert runs[0][0] == runs[1][0]
    assert all(map(torch.equal, runs[0][1], runs[1][1]))


@pytest.mark.parametrize("gradient", [1.0, -1.0, 1e9, -1e9])
def test_one_step_is_the_equation_and_never_more_than_five_e_foldings(gradient):
    """A weight that the optimizer does not move: its rate is 0 for it, but not for HAM."""
    layer = torch.nn.Linear(2, 1, bias=False)
    torch.nn.init.constant_(layer.weight, -0.5)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimizer.step = lambda: None
    layer.weight.grad = torch.full((1, 2), gradient)
    HAM(alpha=2.0, beta=1.0).apply(optimizer)
    exponent = min(max(0.1 * (2.0 * gradient - 1.0), -5.0), 5.0)
    torch.testing.assert_close(layer.weight.detach(), torch.full((1, 2), -0.5 * math.exp(exponent)))


def test_biases_and_normalisation_stay_as_the_optimizer_left_them():
    model = smooth()
    optimizer = sgd(model)
    Sparsifier(model, "dense", 0.0, raw_step=HAM(alpha=ALPHA, beta=0.5)).attach(optimizer)
    plain = smooth()
    other = sgd(plain)
    train(model, optimizer, [0])
    train(plain, other, [0])
    for (name, mine), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(mine, theirs) == (mine.ndim == 1), name


@pytest.mark.parametrize("settings", [{"alpha": -1.0}, {"beta": -1.0}])
def test_a_negative_factor_is_refused(settings):
    with pytest.raises(UserError, match=r"raw_step\.(alpha|beta)=-1 must not be negative"):
        HAM(**settings)
