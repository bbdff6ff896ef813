"""GMP: masks from magnitudes along the ramp."""

import math

import pytest
import torch
from helpers import PHASES, RAMP, STEPS, Naive, adamw, check_twin, exact_zeros, sgd, start, train, weights_of, zeros_of

from st3 import UserError
from st3.sparsify import PolynomialRamp
from st3.sparsify.allocation import uniform
from st3.sparsify.methods import GMP


class NaiveGMP(Naive):
    EVERY = 4

    def after(self, step, sparsity):
        first, last = self.schedule.start + 1, self.schedule.end
        if not first <= step <= last or not (step % self.EVERY == 0 or step in (first, last)):
            return
        if self.method.allocation == "global":
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))
            return
        counts = uniform([self.raw[name].shape for name in self.pruned], 1 - sparsity)
        for name, count in zip(self.pruned, counts, strict=True):
            ordered = self.raw[name].abs().flatten().sort(descending=True).values
            self.mask[name] = self.raw[name].abs() >= ordered[count - 1]


@pytest.mark.parametrize("allocation", ["global", "uniform"])
def test_training_equals_the_naive_formulation(allocation):
    check_twin(NaiveGMP, GMP(every=4, allocation=allocation), RAMP)


def counts_of(method, schedule, make=sgd):
    """Zeros after each step, and the sparsifier."""
    model, optimizer, sparsifier = start(method, schedule, make=make)
    counts = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        counts.append(sparsifier.zeros().sum().item())
    return counts, sparsifier


def test_masks_change_where_the_ramp_begins_at_each_interval_and_where_it_ends():
    counts, sparsifier = counts_of(GMP(every=5), PolynomialRamp(final=0.8, start=3, end=18))
    changed = [step for step in range(1, STEPS) if counts[step] != counts[step - 1]]
    assert changed == [4, 5, 10, 15, 18]
    for step in changed:
        assert counts[step] == exact_zeros(sparsifier.schedule.value(step), sparsifier.prunable)


@pytest.mark.parametrize("make", [sgd, adamw])
def test_uniform_is_the_same_sparsity_in_each_layer_to_the_weight(make):
    """Also where the ramp ends between two updates."""
    ramp = PolynomialRamp(final=0.83, start=3, end=21)
    counts, sparsifier = counts_of(GMP(every=4, allocation="uniform"), ramp, make)
    shapes = [w.shape for w in weights_of(sparsifier).values()]
    kept = uniform(shapes, 1 - 0.83)
    assert sparsifier.zeros().tolist() == [math.prod(s) - count for s, count in zip(shapes, kept, strict=True)]
    assert len(set(counts[21:])) == 1 < len(set(counts[20:]))


def test_it_chooses_anew_after_a_dense_phase():
    model, optimizer, sparsifier = start(GMP(every=100), PHASES)
    chosen = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        if PHASES.value(step) and not PHASES.value(step - 1):
            magnitudes = torch.cat([w.abs().flatten() for w in sparsifier.raw_weights().values()])
            zeros = torch.cat([z.flatten() for z in zeros_of(sparsifier).values()])
            assert magnitudes[zeros].max() < magnitudes[~zeros].min()
            chosen.append(step)
    assert chosen == [4, 14, 24] == sparsifier.mask_updates()


def test_masked_weights_keep_their_raw_values():
    model, optimizer, sparsifier = start(GMP(every=4), RAMP)
    train(model, optimizer, range(STEPS))
    assert all((raw != 0).all() for raw in sparsifier.raw_weights().values())


def test_masks_are_nearly_monotone():
    model, optimizer, sparsifier = start(GMP(every=2), PolynomialRamp(final=0.9, start=2, end=26))
    back, zeroed = 0, zeros_of(sparsifier)
    for step in range(STEPS):
        train(model, optimizer, [step])
        before, zeroed = zeroed, zeros_of(sparsifier)
        back += sum((before[name] & ~zeroed[name]).sum().item() for name in zeroed)
    assert back < 0.05 * sparsifier.zeros().sum()


def test_an_interval_is_a_fraction_of_training_unless_it_is_said_in_steps():
    def updates(method, length):
        return start(method, RAMP, length=length)[2].mask_updates()

    assert updates(GMP(every="20%"), 30) == [4, 6, 12, 18]
    assert updates(GMP(every="6st"), 30) == [4, 6, 12, 18]
    assert updates(GMP(every=6), 3000) == [4, 6, 12, 18]
    assert updates(GMP(), 30) == list(range(4, 19))  # less than a step is one


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GMP(allocation="erk"), "method.allocation=erk is not known: choose global or uniform"),
        (lambda: start(GMP(every=0), RAMP), "method.every=0 must be at least one optimizer step"),
        (lambda: start(GMP(every="0%"), RAMP), "method.every=0 must be at least one optimizer step"),
        (lambda: GMP(every="often"), "method.every=often is no duration"),
        (lambda: start(GMP(), RAMP, length=None), "method.every=1% depends on the length of the training"),
    ],
)
def test_wrong_values_are_refused_by_their_name(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
