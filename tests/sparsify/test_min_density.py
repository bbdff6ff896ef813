"""A floor for every layer, with each method that has one threshold for all layers (`GlobalThreshold`)."""

import pytest
import torch
from contract import STEPS, begin, shortened
from helpers import exact_zeros, sgd, train, zeros_of

from st3 import UserError
from st3.sparsify.method import GlobalThreshold
from st3.sparsify.methods import METHODS
from st3.sparsify.thresholds import held_open

NAMES = [name for name, method in METHODS.items() if issubclass(method, GlobalThreshold)]
SMALL = "4"
"""A layer whose weights are far smaller than those of the others."""


def zeros_after_training(method):
    def optimizer_of(model):
        with torch.no_grad():
            model.get_submodule(SMALL).weight.mul_(1e-6)
        return sgd(model, lr=1e-7)  # which leaves that as it is

    model, optimizer, sparsifier = begin(method, make=optimizer_of)
    train(model, optimizer, range(STEPS))
    return zeros_of(sparsifier)


def test_all_methods_with_one_threshold_have_it():
    assert set(NAMES) == {"st3", "st3_sigma", "hard_ste", "feather", "gmp", "granet", "acdc", "topkast"}


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_that_would_die_keeps_its_share_and_the_total_is_the_same(name):
    without = zeros_after_training(shortened(METHODS[name]()))
    assert without[SMALL].all()
    zeros = zeros_after_training(shortened(METHODS[name](min_density=0.1)))
    for layer, where in zeros.items():
        assert (~where).sum() >= held_open(where.numel(), 0.1), layer
    total = sum(where.numel() for where in zeros.values())
    assert sum(int(where.sum()) for where in zeros.values()) == exact_zeros(0.8, total)


@pytest.mark.parametrize("name", NAMES)
def test_more_than_the_target_leaves_is_refused(name):
    with pytest.raises(
        UserError, match=r"method\.min_density=0\.3 keeps more weights than a sparsity of 0\.8: lower one"
    ):
        begin(shortened(METHODS[name](min_density=0.3)))
    with pytest.raises(UserError, match=r"method\.min_density=1 lies outside \[0, 1\)"):
        METHODS[name](min_density=1.0)


def test_uniform_densities_have_no_use_for_it():
    with pytest.raises(UserError, match=r"method\.min_density=0\.1 has no effect with method\.allocation=uniform"):
        METHODS["gmp"](min_density=0.1, allocation="uniform")
