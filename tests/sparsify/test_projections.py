"""Thresholding and rescaling of one tensor, in closed form."""

import math

import pytest
import torch

from st3.sparsify.projections import hard_threshold, rescale_factor, sigma, soft_threshold

WEIGHT = torch.tensor([[0.5, -0.2, 0.1, -0.9], [0.3, 0.3, -0.3, 0.0]], dtype=torch.float64)
TAU = torch.tensor(0.2, dtype=torch.float64)


def test_soft_and_hard_threshold_closed_form():
    soft = torch.tensor([[0.3, 0, 0, -0.7], [0.1, 0.1, -0.1, 0]], dtype=torch.float64)
    hard = torch.tensor([[0.5, 0, 0, -0.9], [0.3, 0.3, -0.3, 0]], dtype=torch.float64)
    torch.testing.assert_close(soft_threshold(WEIGHT, TAU), soft)
    torch.testing.assert_close(hard_threshold(WEIGHT, TAU), hard)


def test_rescale_factor_closed_form():
    # First channel keeps 1.4 of 1.7 in magnitude (means over 4), second everything; κ of the second is 1.
    rho = (1.4 / 4 + 1e-6) / (1.7 / 4 + 1e-6)
    expected = torch.tensor([[1.01 / (rho + 0.01)], [1.0]], dtype=torch.float64)
    torch.testing.assert_close(rescale_factor(WEIGHT, WEIGHT.abs() > TAU), expected)


def test_rescale_factor_of_an_emptied_channel_is_bounded():
    kappa = rescale_factor(torch.ones(1, 8), torch.zeros(1, 8, dtype=torch.bool))
    assert 100 < kappa.item() <= 101


@pytest.mark.parametrize(("shape", "total"), [((64, 64, 3, 3), 134), ((1000, 2048), 3048)])
def test_sigma_closed_form(shape, total):
    assert sigma(shape) == pytest.approx(1 / math.sqrt(total))


def test_a_weight_that_passes_the_threshold_comes_from_zero_only_if_it_is_shrunk():
    just_above = TAU + 1e-6
    assert soft_threshold(just_above, TAU).item() == pytest.approx(1e-6, rel=1e-6)
    assert hard_threshold(just_above, TAU).item() == just_above.item()
    for threshold in (soft_threshold, hard_threshold):
        assert threshold(TAU, TAU) == 0  # a tie is zeroed
        assert torch.equal(threshold(-WEIGHT, TAU), -threshold(WEIGHT, TAU))
