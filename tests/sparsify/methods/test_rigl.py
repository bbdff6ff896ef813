"""RigL, and SET, its random variant: each layer keeps its number of weights, and moves them."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    PHASES,
    RAMP,
    SPARSE,
    STEPS,
    Naive,
    adamw,
    batch,
    before_each_step,
    check_twin,
    masks_of,
    smallest,
    smooth,
    start,
    train,
    weights_of,
)

from st3 import Sparsifier, UserError
from st3.sparsify import METHODS
from st3.sparsify.allocation import erdos_renyi_kernel, uniform
from st3.sparsify.methods import SET, RigL

EVERY, UNTIL = 4, 22
UPDATES = [4, 8, 12, 16, 20]
VARIANTS = {
    "rigl": RigL(every=EVERY, until=UNTIL),
    "uniform": RigL(every=EVERY, until=UNTIL, allocation="uniform", drop=0.5),
    "set": SET(every=EVERY, until=UNTIL),
}
all_variants = pytest.mark.parametrize("method", VARIANTS.values(), ids=VARIANTS)


def fraction_replaced(method: RigL, step: int) -> float:
    return method.drop / 2 * (1 + math.cos(math.pi * step / UNTIL)) if step in UPDATES else 0.0


class NaiveRigL(Naive):
    def begin(self, state):
        self.mask = {name: mask.clone() for name, mask in zip(self.pruned, state["masks"], strict=True)}
        self.seed = state["seed"]
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]

    def route(self, step, name, gradient, used):
        dense = step in UPDATES and self.method.growth == "gradient"
        return gradient if dense else gradient * self.mask[name]

    def before(self, step, gradients):
        if step not in UPDATES:
            return
        fraction = fraction_replaced(self.method, step)
        for layer, name in enumerate(self.pruned):
            mask, growth = self.mask[name], gradients[name].abs()
            if self.method.growth == "random":
                chance = torch.Generator().manual_seed(self.seed + 1_000_003 * step + layer)
                growth = torch.rand(mask.shape, generator=chance)
            kept = mask.sum().item()
            count = math.floor(fraction * kept)
            survivors = mask.flatten().clone()
            survivors[smallest(self.raw[name].abs(), mask, count)] = False
            grow = smallest(-growth, ~survivors, count)  # what has just been dropped competes, and stays if it wins
            fresh = [place for place in grow if not mask.flatten()[place]]
            survivors[grow] = True
            self.mask[name] = survivors.view(mask.shape)
            for tensor in (self.raw[name], self.buffer[name]):
                tensor.view(-1)[fresh] = 0
            gradients[name] = gradients[name] * self.mask[name]

    def after(self, step, sparsity):
        for name in self.pruned:
            self.raw[name] = self.raw[name] * self.mask[name]


@all_variants
def test_training_equals_the_naive_formulation(method):
    check_twin(NaiveRigL, method, SPARSE)


@all_variants
def test_it_is_sparse_before_its_first_step_and_each_layer_keeps_its_number(method):
    model, optimizer, sparsifier = start(method, SPARSE)
    weights = weights_of(sparsifier)
    allocate = uniform if method.allocation == "uniform" else erdos_renyi_kernel
    kept = allocate([w.shape for w in weights.values()], 0.2)
    assert [(w != 0).sum().item() for w in weights.values()] == kept
    assert sum(kept) == round(0.2 * sparsifier.prunable)
    for step in range(STEPS):
        train(model, optimizer, [step])
        masks = masks_of(sparsifier)
        assert [mask.sum().item() for mask in masks.values()] == kept
        for name, raw in sparsifier.raw_weights().items():
            assert torch.equal(raw, weights[name])
            assert (weights[name][~masks[name]] == 0).all()
            if method.growth == "gradient":  # at random, weights grow also where no gradient arrives
                assert (weights[name][masks[name]] != 0).all()


@all_variants
def test_no_more_connections_are_replaced_than_promised(method):
    """Fewer where some that are dropped win their place back."""
    model, optimizer, sparsifier = start(method, SPARSE)
    masks = masks_of(sparsifier)
    for step in range(STEPS):
        train(model, optimizer, [step])
        before, masks = masks, masks_of(sparsifier)
        moved = 0
        for name, mask in masks.items():
            gone = (before[name] & ~mask).sum()
            assert gone == (mask & ~before[name]).sum() <= math.floor(fraction_replaced(method, step) * mask.sum())
            moved += gone
        assert (moved > 0) == (step in UPDATES)
    assert sparsifier.mask_updates() == UPDATES


@pytest.mark.parametrize("name", ["rigl", "set"])
def test_grown_weights_start_from_zero_and_without_memory(name):
    """Also what AdamW remembers; the momentum of SGD is seen by the naive formulation."""
    model, optimizer, sparsifier = start(VARIANTS[name], SPARSE, make=adamw)
    seen = []

    def look():
        for layer, mask in masks_of(sparsifier).items():
            grown = mask & ~before[layer]
            weight = sparsifier.weights[layer]  # holds the raw values now
            assert (weight[grown] == 0).all()
            assert (weight.grad[~mask] == 0).all()
            for key, value in optimizer.state[weight].items():
                assert key == "step" or (value[grown] == 0).all()
            seen.append(grown.sum().item())

    before_each_step(optimizer, look)
    for step in range(9):
        before = masks_of(sparsifier)
        train(model, optimizer, [step])
    assert sum(seen) > 0


def test_rigl_grows_where_the_gradient_is_and_set_does_not():
    """Shown by the gradients of what is grown, against those of all zeroed weights."""
    ratio = {}
    for name in ("rigl", "set"):
        model, optimizer, sparsifier = start(VARIANTS[name], SPARSE)
        train(model, optimizer, range(4))
        other = copy.deepcopy(model)
        images, labels = batch(4)
        F.cross_entropy(other(images), labels).backward()
        before = masks_of(sparsifier)["7"]
        train(model, optimizer, [4])
        grown, gradient = masks_of(sparsifier)["7"] & ~before, other[7].weight.grad.abs()
        ratio[name] = (gradient[grown].mean() / gradient[~before].mean()).item()
        if name == "rigl":
            assert gradient[grown].min() >= gradient[~before & ~grown].max()
    assert ratio["rigl"] > 2
    assert 0.5 < ratio["set"] < 1.5


def test_random_connections_differ_from_run_to_run():
    runs = []
    for seed in (1, 2):
        model = smooth()
        torch.manual_seed(seed)
        runs.append(Sparsifier(model, "set", 0.8, length=STEPS).state_dict()["method"])
    assert runs[0]["seed"] != runs[1]["seed"]
    assert not torch.equal(runs[0]["masks"][0], runs[1]["masks"][0])


def test_set_is_rigl_with_random_growth():
    runs = []
    for method in (VARIANTS["set"], RigL(every=EVERY, until=UNTIL, growth="random")):
        model, optimizer, _ = start(method, SPARSE)
        runs.append(train(model, optimizer, range(10)))
    assert runs[0] == runs[1]


def test_updates_are_fractions_of_training_unless_they_are_said_in_steps():
    def updates(method, length):
        return start(method, SPARSE, length=length)[2].mask_updates()

    assert updates(RigL(), 400) == list(range(4, 300, 4))
    assert updates(RigL(every="5%", until=200), 400) == list(range(20, 200, 20))
    assert updates(RigL(until=0), 400) == []


@pytest.mark.parametrize("name", ["rigl", "set"])
@pytest.mark.parametrize("schedule", [RAMP, PHASES], ids=["ramp", "phases"])
def test_a_schedule_that_is_not_constant_is_refused(name, schedule):
    with pytest.raises(UserError, match="follows no ramp: schedule=constant"):
        start(METHODS[name](), schedule)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RigL(allocation="global"), "method.allocation=global is not known: choose erk or uniform"),
        (lambda: RigL(growth="magnitude"), "method.growth=magnitude is not known"),
        (lambda: start(RigL(every=0), SPARSE), "method.every=0 must be at least one optimizer step"),
        (lambda: RigL(drop=1.1), r"method.drop=1.1 lies outside \[0, 1\]"),
        (lambda: RigL(drop=math.nan), "method.drop=nan"),
        (lambda: start(RigL(), SPARSE, length=None), "method.every=1% depends on the length of the training"),
        (lambda: start(RigL(every=4), SPARSE, length=None), "method.until=75% depends on the length of the training"),
    ],
)
def test_wrong_values_are_refused_by_their_name(make, message):
    with pytest.raises(UserError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_nothing_moves_in_a_network_without_zeros():
    assert Sparsifier(torch.nn.Linear(4, 4), "rigl", 0.0, length=100).mask_updates() == []
