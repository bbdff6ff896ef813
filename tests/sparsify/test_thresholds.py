"""Quantiles against PyTorch's and against sorting; what ties and rounding do."""

import numpy as np
import pytest
import torch

from st3.sparsify.thresholds import quantile, weighted_quantile


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("q", [1e-4, 0.5, 0.98, 0.9999])
@pytest.mark.parametrize("n", [1, 2, 3, 1000])
def test_quantile_is_torch_quantile(n, q, dtype):
    values = torch.randn(n, dtype=dtype).abs()
    # In float32 torch.quantile rounds the rank, too.
    torch.testing.assert_close(quantile(values, q), torch.quantile(values.double(), q).to(dtype))


@pytest.mark.parametrize("q", [0.0, 1e-6, 0.3, 0.9, 0.999999])
@pytest.mark.parametrize("kind", ["random", "ties", "sorted", "periodic"])
def test_many_values_give_the_order_statistics_of_a_sort(kind, q):
    n = 300_007  # enough for the way by a sample
    values = torch.rand(n)
    if kind == "ties":
        values = (values * 5).floor()
    elif kind == "sorted":
        values = values.sort().values
    elif kind == "periodic":  # the sample sees only what is large, and brackets the wrong values
        values[::61] += 100
    ordered, rank = values.sort().values.double(), q * (n - 1)
    low, high = ordered[int(rank)], ordered[min(int(rank) + 1, n - 1)]
    assert quantile(values, q).item() == pytest.approx((low + (high - low) * (rank - int(rank))).item(), rel=1e-6)


@pytest.mark.parametrize("q", [0.001, 0.25, 0.5, 0.9, 0.999])
def test_count_at_or_below_is_within_one_of_the_target(q):
    for n in (10, 999, 20_000):
        values = torch.rand(n, dtype=torch.float64)
        assert abs((values <= quantile(values, q)).sum().item() - q * n) <= 1


def test_rounding_never_lifts_the_threshold_onto_the_upper_neighbour():
    # Neighbours one float apart: every interpolation rounds to one of them.
    low = torch.tensor(1.0)
    high = torch.nextafter(low, torch.tensor(2.0))
    values = torch.stack([low, high])
    for q in (0.01, 0.5, 0.99):
        assert quantile(values, q) == low
        assert weighted_quantile(values, torch.tensor([3, 3]), q) == low


def test_ties_share_one_fate():
    values = torch.tensor([0.1, 0.2, 0.2, 0.2, 0.3])
    threshold = quantile(values, 0.4)
    assert threshold == values[1]
    assert (values > threshold).tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("q", [0.01, 0.3, 0.5, 0.9, 0.99])
def test_equal_costs_give_the_plain_quantile(q):
    values = torch.randn(501, dtype=torch.float64).abs()
    torch.testing.assert_close(weighted_quantile(values, torch.full((501,), 7), q), quantile(values, q))


@pytest.mark.parametrize("q", [0.05, 0.5, 0.9, 0.99])
def test_removed_cost_is_within_one_value_of_the_target(q):
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.random(3000))
    costs = torch.from_numpy(generator.integers(1, 1000, 3000))
    removed = costs[values <= weighted_quantile(values, costs, q)].sum().item()
    assert abs(removed - q * costs.sum().item()) <= costs.max().item()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("q", [0.1, 0.9, 0.99])
def test_cuda_gives_the_cpu_threshold(q):
    values = torch.rand(1_000_003)
    assert quantile(values.cuda(), q).item() == pytest.approx(quantile(values, q).item(), rel=1e-6)
