"""Feather: between soft and hard thresholding."""

import math
from itertools import pairwise

import pytest
import torch
from helpers import RAMP, STEPS, Naive, check_twin, start, train, weights_of

from st3 import UserError
from st3.sparsify import METHODS, ST3, Constant, PolynomialRamp
from st3.sparsify.methods import Feather
from st3.sparsify.projections import hard_threshold, power_threshold

STEEP = PolynomialRamp(final=0.97, start=0, end=15)


class NaiveFeather(Naive):
    threshold = None

    def project(self, name):
        w = self.raw[name]
        if self.threshold is None:
            return w
        above = (w.abs() ** 3 - self.threshold**3).clamp(min=0)
        return torch.sign(w) * above ** (1 / 3)

    def route(self, step, name, gradient, used):
        theta = 1.0 if self.schedule.final <= 0.95 else 0.5
        return torch.where(used == 0, theta * gradient, gradient)

    def after(self, step, sparsity):
        if sparsity:
            self.threshold = torch.quantile(self.magnitudes(), sparsity)


@pytest.mark.parametrize("schedule", [RAMP, STEEP], ids=["all of the gradient", "half of it where zeroed"])
def test_training_equals_the_naive_formulation(schedule):
    check_twin(NaiveFeather, Feather(), schedule)


def test_it_lies_between_soft_and_hard_thresholding():
    """p = 1 is soft, infinity hard, and in between the larger p, the nearer to hard."""
    weights = {}
    for name, method in {
        "soft": ST3(rescale=False), "hard": METHODS["hard_ste"](), "1": Feather(exponent=1.0), "3": Feather(),
        "9": Feather(exponent=9.0), "99": Feather(exponent=99.0),
    }.items():  # fmt: skip
        model, optimizer, sparsifier = start(method, 0.8, torch.float64)
        train(model, optimizer, [0], torch.float64)
        weights[name] = torch.cat([w.flatten() for w in weights_of(sparsifier).values()])
    torch.testing.assert_close(weights["1"], weights["soft"], atol=1e-14, rtol=0)
    values, threshold = torch.linspace(-2, 2, 9, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert torch.equal(power_threshold(values, threshold, math.inf), hard_threshold(values, threshold))
    distance = [(weights[p] - weights["hard"]).abs().sum().item() for p in ("1", "3", "9", "99")]
    assert all(one > 2 * other for one, other in pairwise(distance))
    assert all(torch.equal(weights[p] != 0, weights["hard"] != 0) for p in weights)


def test_training_with_exponent_one_is_soft_thresholding():
    losses = []
    for method in (Feather(exponent=1.0), ST3(rescale=False)):
        model, optimizer, _ = start(method, RAMP, torch.float64)
        losses.append(train(model, optimizer, range(STEPS), torch.float64))
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)


@pytest.mark.parametrize(("final", "theta"), [(0.5, 1.0), (0.95, 1.0), (0.951, 0.5), (0.99, 0.5)])
def test_theta_depends_on_the_final_sparsity_unless_it_is_given(final, theta):
    weight, gradient = torch.tensor([0.0, 0.3]), torch.tensor([2.0, 2.0])
    for schedule in (PolynomialRamp(final=final, start=0, end=10), Constant(final)):
        for method, expected in ((Feather(), theta), (Feather(theta=0.25), 0.25), (Feather(theta=1.0), 1.0)):
            pruner = method.start([], schedule, None)
            assert pruner.route(0, weight, weight, gradient, 0).tolist() == [2 * expected, 2.0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Feather(exponent=0.5), r"method.exponent=0.5 lies outside \[1, 100\]"),
        (lambda: Feather(exponent=math.nan), "method.exponent=nan"),
        (lambda: Feather(theta=2.0), r"method.theta=2 lies outside \[0, 1\]"),
    ],
)
def test_wrong_values_are_refused_by_their_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
