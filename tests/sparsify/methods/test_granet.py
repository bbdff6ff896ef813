"""GraNet: pruning along the ramp, with regrowth."""

import math

import pytest
import torch
from helpers import PHASES, RAMP, STEPS, Naive, adamw, before_each_step, check_twin, masks_of, smallest, start, train

from st3 import UserError
from st3.sparsify import PolynomialRamp
from st3.sparsify.methods import GraNet

VARIANTS = {
    "published": GraNet(every=4, until=STEPS),
    "p is small early": GraNet(every=4, until=14),
    "p stays": GraNet(every=3, until=STEPS, regrow=0.3, regrow_final=0.3),
}
all_variants = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)


def fraction_regrown(method: GraNet, step: int) -> float:
    high, low = method.regrow, method.regrow_final
    x = min(step / method.until.amount, 1)
    return low + (high - low) * (1 + math.cos(math.pi * x)) / 2


def updates_at(method: GraNet, step: int) -> bool:
    return step > 0 and step % method.every.amount == 0


class NaiveGraNet(Naive):
    level = 0.0

    def route(self, step, name, gradient, used):
        return gradient if updates_at(self.method, step) else gradient * self.mask[name]

    def before(self, step, gradients):
        sparsity, update = self.schedule.value(step), updates_at(self.method, step)
        if not sparsity or not (update or step == self.schedule.end):
            return
        if sparsity > self.level:
            self.mask_above(torch.quantile(self.magnitudes(), sparsity))  # what was pruned before is 0
            self.level = sparsity
        for name in self.pruned:
            mask, grown = self.mask[name].flatten().clone(), []
            if update:
                kept = mask.sum().item()
                count = math.ceil(fraction_regrown(self.method, step) * kept)
                before = mask.clone()
                mask[smallest(self.raw[name].abs(), mask, count)] = False
                regrown = smallest(-gradients[name].abs(), ~mask, count)  # what has just been dropped competes
                grown = [place for place in regrown if not before[place]]
                mask[regrown] = True
            self.mask[name] = mask.view(self.mask[name].shape)
            for tensor in (self.raw[name], self.buffer[name]):
                tensor.mul_(self.mask[name]).view(-1)[grown] = 0
            gradients[name] = gradients[name] * self.mask[name]

    def after(self, step, sparsity):
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]


@all_variants
def test_training_equals_the_naive_formulation(method):
    check_twin(NaiveGraNet, method, RAMP)


@all_variants
def test_beyond_the_ramp_it_regrows_what_it_drops(method):
    model, optimizer, sparsifier = start(method, RAMP)
    train(model, optimizer, range(RAMP.end + 1))
    masks = masks_of(sparsifier)
    for step in range(RAMP.end + 1, STEPS):
        train(model, optimizer, [step])
        before, masks = masks, masks_of(sparsifier)
        for name, mask in masks.items():
            kept = before[name].sum().item()
            regrown = fraction_regrown(method, step) * updates_at(method, step)
            assert mask.sum() == kept
            assert (before[name] & ~mask).sum() <= math.ceil(regrown * kept)  # some win their place back


@pytest.mark.parametrize(("until", "step", "expected"), [(0, 4, 0.1), (4, 4, 0.1), (8, 4, 0.3), (4, 8, 0.1)])
def test_regrowth_falls_along_half_a_cosine_to_its_final_fraction(until, step, expected):
    method = GraNet(every=4, until=until, regrow=0.5, regrow_final=0.1)
    model, optimizer, sparsifier = start(method, PolynomialRamp(final=0.5, start=0, end=0))
    train(model, optimizer, range(step))
    before = masks_of(sparsifier)
    train(model, optimizer, [step])
    for name, mask in masks_of(sparsifier).items():
        kept = before[name].sum().item()
        replaced = (before[name] & ~mask).sum().item()
        assert replaced <= math.ceil(expected * kept)


def test_what_is_pruned_or_grown_is_zero_and_without_memory():
    """Also what AdamW remembers; the momentum of SGD is seen by the naive formulation."""
    model, optimizer, sparsifier = start(VARIANTS["published"], RAMP, make=adamw)
    seen = []

    def look():
        masks = masks_of(sparsifier)
        if all(torch.equal(before[name], mask) for name, mask in masks.items()):
            return
        for name, mask in masks.items():
            grown = mask & ~before[name]
            weight = sparsifier.weights[name]  # holds the raw values now
            assert (weight[grown | ~mask] == 0).all()
            assert (weight.grad[~mask] == 0).all()
            for key, value in optimizer.state[weight].items():
                assert key == "step" or (value[grown | ~mask] == 0).all()
            seen.append(grown.sum().item())

    before_each_step(optimizer, look)
    for step in range(STEPS):
        before = masks_of(sparsifier)
        train(model, optimizer, [step])
    assert sum(seen) > 0


def test_masks_change_at_each_interval_and_where_the_ramp_ends():
    assert start(GraNet(every=4), RAMP)[2].mask_updates() == [4, 8, 12, 16, 18, 20, 24, 28]
    assert start(GraNet(every="10%"), RAMP, length=50)[2].mask_updates() == [5, 10, 15, 18, *range(20, 50, 5)]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: start(GraNet(every=-1), RAMP), "method.every=-1st is no duration"),
        (lambda: GraNet(regrow=1.5), r"method.regrow=1.5 lies outside \[0, 1\]"),
        (lambda: GraNet(regrow_final=-0.1), r"method.regrow_final=-0.1 lies outside"),
        (lambda: start(GraNet(every=4), RAMP, length=None), "method.until=100% depends on the length of the training"),
        (lambda: start(GraNet(every=4), PHASES), "this method never becomes dense again: schedule=cubic"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
