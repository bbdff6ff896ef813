import math

import pytest
import torch

from st3 import UserError
from st3.sparsify import METHODS, ST3, Constant
from st3.sparsify.flat_weights import FlatWeights
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


def project(method, raw, sparsity, costs=None) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Sparse weights and thresholds."""
    sparse = [torch.empty_like(w) for w in raw]
    value = torch.tensor(sparsity, dtype=torch.float64)
    return sparse, method.start(raw, Constant(sparsity)).project(FlatWeights.copy_of(raw), value, sparse, costs)


@pytest.mark.parametrize("name", ["st3", "st3_sigma"])
@pytest.mark.parametrize("sparsity", [0.01, 0.5, 0.9, 0.999])
def test_counts_are_exact_and_every_kept_magnitude_is_above_its_threshold(name, sparsity):
    raw = [torch.randn(32, 16, 3, 3), torch.randn(64, 1, 3, 3) * 0.1, torch.randn(10, 640) * 3]
    sparse, thresholds = project(METHODS[name], raw, sparsity)
    total = sum(w.numel() for w in raw)
    zeros = sum((w == 0).sum().item() for w in sparse)
    assert abs(zeros - sparsity * total) <= 1
    for w, projected, threshold in zip(raw, sparse, thresholds, strict=True):
        kept = projected != 0
        assert (w.abs()[kept] >= threshold * (1 - 1e-6)).all()
        assert (w.abs()[~kept] <= threshold * (1 + 1e-6)).all()
        assert (projected[kept].sign() == w[kept].sign()).all()


def test_one_global_threshold_against_one_per_layer_in_sigma():
    raw = [torch.randn(32, 16, 3, 3), torch.randn(10, 64)]
    _, (first, second) = project(METHODS["st3"], raw, 0.7)
    assert first == second
    _, (first, second) = project(METHODS["st3_sigma"], raw, 0.7)
    assert (first / second).item() == pytest.approx(math.sqrt(74 / 54), rel=1e-6)


def test_flops_target_removes_the_requested_fraction_of_macs():
    raw = [torch.randn(16, 8, 3, 3), torch.randn(32, 16, 3, 3), torch.randn(10, 32)]
    costs = torch.tensor([1024, 256, 1])
    total = sum(cost * w.numel() for cost, w in zip(costs.tolist(), raw, strict=True))
    for method in (METHODS["st3"], METHODS["st3_sigma"]):
        sparse, _ = project(method, raw, 0.75, costs)
        removed = sum(cost * (w == 0).sum().item() for cost, w in zip(costs.tolist(), sparse, strict=True))
        assert abs(removed - 0.75 * total) <= 1024


def test_switches():
    raw = [torch.randn(8, 32)]
    sparse, (threshold,) = project(ST3(shrink="hard", rescale=False), raw, 0.5)
    assert torch.equal(sparse[0], hard_threshold(raw[0], threshold))
    sparse, _ = project(ST3(rescale=False), raw, 0.5)
    assert torch.equal(sparse[0], soft_threshold(raw[0], threshold))
    sparse, _ = project(ST3(), raw, 0.5)
    kappa = rescale_factor(raw[0], raw[0].abs() > threshold)
    assert torch.equal(sparse[0], soft_threshold(raw[0], threshold) * kappa)
    with pytest.raises(UserError, match=r"method\.shrink=medium"):
        ST3(shrink="medium")
