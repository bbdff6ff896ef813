"""How many weights each layer keeps: against hand-solved cases, and the totals to the weight."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from st3.models import build_model
from st3.sparsify.allocation import erdos_renyi_kernel, uniform

DENSITIES = [1e-7, 1e-6, 1e-5, 1e-4, 0.001, 0.01, 0.02, 0.05, 0.1, 0.2, 1 / 3, 0.5, 0.7, 0.9, 0.99, 1.0]


def shapes_of(name: str, image_size: int) -> list[tuple[int, ...]]:
    with torch.device("meta"):
        model = build_model(name, classes=1000, image_size=image_size)
    return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


RESNET50 = shapes_of("resnet50", 224)
NETWORKS = {
    "resnet50": RESNET50,
    "mobilenet_v1": shapes_of("mobilenet_v1", 224),  # depth-wise layers, which saturate first
    "three": [(4, 3, 3, 3), (10, 20), (50, 40)],
    "one": [(7, 11)],
    "tiny": [(1, 1), (1, 2), (2, 1, 1, 1)],
}


def test_the_shapes_are_those_of_resnet50():
    assert sum(math.prod(shape) for shape in RESNET50) == 25_502_912
    assert len(RESNET50) == 54


@pytest.mark.parametrize("allocate", [erdos_renyi_kernel, uniform])
@pytest.mark.parametrize("shapes", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("density", DENSITIES)
def test_totals_are_exact_and_no_layer_keeps_more_than_it_has(allocate, shapes, density):
    kept = allocate(shapes, density)
    sizes = [math.prod(shape) for shape in shapes]
    assert sum(kept) == round(density * sum(sizes))
    assert all(type(count) is int and 0 <= count <= size for count, size in zip(kept, sizes, strict=True))
    if density == 1:
        assert kept == sizes


@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.8, 0.9, 0.95, 0.965, 0.98, 0.99, 0.999])
def test_zeros_are_exact_for_the_sparsities_of_the_tables(sparsity):
    total = 25_502_912
    for allocate in (erdos_renyi_kernel, uniform):
        zeros = total - sum(allocate(RESNET50, 1 - sparsity))
        assert abs(zeros - sparsity * total) <= 0.5 + 1e-6


def test_erk_of_a_hand_solved_case():
    """A layer keeps ε·Σ dims of its weights, or all of them."""
    shapes = [(5, 5), (10, 10), (20, 20)]  # Σ dims 10, 20, 40; 25, 100, 400 weights; 525 in all
    # 105 are kept: ε = 105/70 = 1.5; 15, 30, 60.
    assert erdos_renyi_kernel(shapes, 0.2) == [15, 30, 60]
    # 210 are kept: ε = 3, and 30 do not fit into the first; (210 − 25)/60 = 3.0833…: 61.67 and 123.33.
    assert erdos_renyi_kernel(shapes, 0.4) == [25, 62, 123]
    # 420 are kept: ε = 6, and 60 and 120 do not fit; the last keeps what is left.
    assert erdos_renyi_kernel(shapes, 0.8) == [25, 100, 295]


def test_a_layer_that_fills_only_once_others_are_full():
    """ε rises when a layer is taken out, so that a second layer fills in the second round."""
    shapes = [(2, 2), (6, 6), (40, 40)]  # Σ dims 4, 12, 80; 4, 36, 1600 weights
    wanted = 280  # first ε = 280/96 = 2.917: 11.7 > 4, but 35.0 < 36; second ε = 276/92 = 3: 36; all but the last full
    kept = erdos_renyi_kernel(shapes, wanted / 1640)
    assert kept == [4, 36, 240]


def test_erk_orders_densities_as_the_formula_says():
    kept = erdos_renyi_kernel(RESNET50, 0.1)
    density = [count / math.prod(shape) for count, shape in zip(kept, RESNET50, strict=True)]
    ratio = [sum(shape) / math.prod(shape) for shape in RESNET50]
    order = sorted(range(len(RESNET50)), key=lambda i: ratio[i])
    for lower, higher in pairwise(order):
        assert density[lower] <= density[higher] + 1 / math.prod(RESNET50[higher])
    assert max(density) == 1
    open_ = [i for i in order if density[i] < 1]
    epsilon = [density[i] / ratio[i] for i in open_]
    assert min(epsilon) == pytest.approx(max(epsilon), rel=1e-3)  # one ε for all that are not full
    assert all(max(epsilon) * ratio[i] >= 1 for i in order if density[i] == 1)


def test_uniform_gives_every_layer_the_same_density_to_the_weight():
    for density in DENSITIES:
        for count, shape in zip(uniform(RESNET50, density), RESNET50, strict=True):
            assert abs(count - density * math.prod(shape)) < 1


def test_largest_remainders_are_rounded_up():
    assert uniform([(10, 1), (10, 1), (20, 1)], 0.13) == [1, 1, 3]  # 1.3, 1.3, 2.6 of 5.2


def test_tiny_densities_may_leave_layers_empty():
    assert uniform([(2, 2), (3, 3), (100, 100)], 1e-4) == [0, 0, 1]
    assert sum(erdos_renyi_kernel(RESNET50, 1e-9)) == 0
