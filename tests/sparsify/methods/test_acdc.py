"""AC/DC: compressed and dense phases."""

import copy

import pytest
import torch
from helpers import PHASES, RAMP, STEPS, Naive, adamw, check_twin, exact_zeros, masks_of, sgd, start, train, zeros_of

from st3 import UserError
from st3.sparsify import AlternatingPhases, PolynomialRamp
from st3.sparsify.methods import ACDC


class NaiveACDC(Naive):
    compressed = False

    def after(self, step, sparsity):
        if sparsity and not self.compressed:
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]
        if self.compressed and not sparsity:
            self.mask = {name: torch.ones_like(mask) for name, mask in self.mask.items()}
            self.buffer = {name: torch.zeros_like(w) for name, w in self.buffer.items()}
        self.compressed = sparsity > 0


def test_training_equals_the_naive_formulation():
    check_twin(NaiveACDC, ACDC(), PHASES)


@pytest.mark.parametrize("make", [sgd, adamw])
@pytest.mark.parametrize("period", [1, 2, 5])
def test_dense_phases_are_dense_and_start_from_zero_without_momentum(period, make):
    phases = AlternatingPhases(final=0.8, start=4, period=period, last_dense=4 + 4 * period, end=STEPS)
    model, optimizer, sparsifier = start(ACDC(), phases, make=make)
    zeroed, returns = None, 0
    for step in range(7 + 4 * period):
        train(model, optimizer, [step])
        sparse, was_sparse = phases.value(step) > 0, step > 0 and phases.value(step - 1) > 0
        zeros = zeros_of(sparsifier)
        count = sum(z.sum().item() for z in zeros.values())
        if sparse:
            assert count == exact_zeros(0.8, sparsifier.prunable)
            if was_sparse:  # one mask for the whole phase
                assert all(torch.equal(zeroed[name], zeros[name]) for name in zeros)
            assert all((raw[zeros[name]] == 0).all() for name, raw in sparsifier.raw_weights().items())
        elif was_sparse:  # just returned: all live, those from exactly 0 and nothing remembers
            assert all(torch.equal(zeroed[name], zeros[name]) for name in zeros)
            assert all(mask.all() for mask in masks_of(sparsifier).values())
            for state in optimizer.state.values():
                for name, value in state.items():
                    assert name == "step" or (value == 0).all()
            returns += 1
        elif phases.value(step - 2) == 0:  # in the first step no gradient comes back through weights that are 0
            assert count == 0
        zeroed = zeros
    assert returns == 2


def test_a_dense_phase_is_dense_training_bit_for_bit():
    phases = AlternatingPhases(final=0.8, start=2, period=6, last_dense=26, end=28)
    model, optimizer, sparsifier = start(ACDC(), phases)
    train(model, optimizer, range(9))  # the last one has returned to dense
    assert sparsifier.sparsity == 0
    plain = copy.deepcopy(model)
    other = sgd(plain)
    assert train(model, optimizer, range(9, 14)) == train(plain, other, range(9, 14))
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_masks_change_where_phases_do():
    assert start(ACDC(), PHASES)[2].mask_updates() == [4, 9, 14, 19, 24]


def test_a_ramp_is_refused_and_a_jump_is_none():
    with pytest.raises(UserError, match="follows no ramp: schedule=acdc"):
        start(ACDC(), RAMP)
    for schedule in (PHASES, 0.5, PolynomialRamp(final=0.5, start=4, end=4)):
        start(ACDC(), schedule)
