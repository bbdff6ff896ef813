"""The last part of a training, in which masks are fixed and the sparse weights are trained as they are."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import PHASES, RAMP, STEPS, assert_same, batch, sgd, smooth, start, states, train, zeros_of

from st3 import Sparsifier, UserError
from st3.durations import Duration, Length
from st3.sparsify import Constant
from st3.sparsify.methods import ACDC, METHODS, STR, GraNet, ProbMask
from st3.sparsify.schedules import RampSettings

FROM = 22
"""After the ramp, with eight steps left."""


def begin(method="st3", schedule=RAMP, **options):
    return start(method, schedule, finetune_from=FROM, length=STEPS, **options)


def test_until_then_it_is_the_training_without():
    one, other = begin(), start("st3", RAMP, length=STEPS)
    for each in (one, other):
        train(*each[:2], range(FROM - 1))
    assert_same(one[0].state_dict(), other[0].state_dict())


def test_then_it_is_the_training_of_the_sparse_weights_alone():
    """Twin: a plain model that starts from the sparse weights; its gradients and weights are multiplied by the mask."""
    model, optimizer, sparsifier = begin(dtype=torch.float64)
    train(model, optimizer, range(FROM), torch.float64)
    twin = smooth(torch.float64)
    twin.load_state_dict(model.state_dict())
    their_optimizer = sgd(twin)
    their_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    weights = [twin.get_submodule(name).weight for name in sparsifier.weights]
    masks = [(w != 0).to(w.dtype) for w in weights]
    for step in range(FROM, STEPS):
        images, labels = batch(step, torch.float64)
        their_optimizer.zero_grad()
        F.cross_entropy(twin(images), labels).backward()
        for weight, mask in zip(weights, masks, strict=True):
            weight.grad *= mask
        their_optimizer.step()
        with torch.no_grad():
            for weight, mask in zip(weights, masks, strict=True):
                weight *= mask
    train(model, optimizer, range(FROM, STEPS), torch.float64)
    for name, value in twin.state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], value, rtol=1e-12, atol=1e-14)


SCHEDULES = {"constant": Constant(0.8), "acdc": PHASES}


@pytest.mark.parametrize("method", [name for name in METHODS if name != "dense"])
def test_the_zeros_stay_where_they_are_whatever_the_method(method):
    settings = METHODS[method]()
    if isinstance(settings, STR):
        settings = STR(threshold_init=-2.0)
    if isinstance(settings, ProbMask):
        settings = ProbMask(until=FROM - 1)
    schedule = PHASES if isinstance(settings, ACDC) else SCHEDULES.get(settings.follows, RAMP)
    model, optimizer, sparsifier = start(settings, schedule, finetune_from=25, length=STEPS)
    train(model, optimizer, range(25))
    zeros, values = zeros_of(sparsifier), copy.deepcopy(model.state_dict())
    assert sum(int(mask.sum()) for mask in zeros.values()) > 0.3 * sparsifier.prunable
    for step in range(25, STEPS):
        train(model, optimizer, [step])
        assert_same(zeros_of(sparsifier), zeros)
    raw = sparsifier.raw_weights()
    for name, weight in sparsifier.weights.items():
        assert torch.equal(raw[name], weight)
        assert not torch.equal(weight, values[f"{name}.weight"])


def test_it_continues_from_a_checkpoint_before_and_after_the_moment():
    whole = begin()
    saved = {}
    for step in range(STEPS):
        saved[step] = copy.deepcopy(states(*whole))
        train(*whole[:2], [step])
    for step in (FROM - 1, FROM, FROM + 3):
        for steps_before in (0, STEPS):  # into a fresh sparsifier, and one whose masks are fixed
            other = begin()
            train(*other[:2], range(steps_before))
            for part, state in zip(other, saved[step], strict=True):
                part.load_state_dict(copy.deepcopy(state))
            train(*other[:2], range(step, STEPS))
            assert_same(states(*whole), states(*other))


def test_it_begins_also_where_a_scaler_skips_the_step_before():
    model, optimizer, sparsifier = begin()
    train(model, optimizer, range(FROM - 1))
    assert sparsifier.next_step(FROM - 1) is None  # a loop counts it, but the optimizer does not step
    assert sparsifier.next_step(FROM) is None
    train(model, optimizer, [FROM])
    assert sparsifier.state_dict()["fixed"]
    assert sparsifier.next_step(FROM + 1) == sparsifier.next_step(FROM + 2)


def test_no_masks_change_after_it():
    _, _, granet = start(GraNet(every=4), RAMP, finetune_from=FROM, length=STEPS)
    assert granet.mask_updates() == [4, 8, 12, 16, 18, 20]
    assert begin()[2].mask_updates() is None


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"finetune_from": 10}, "before the schedule is at its target"),
        ({"finetune_from": 0}, "must be at least 1"),
        ({"finetune_from": 20, "method": ProbMask(until=21)}, "before the masks are hard"),
    ],
)
def test_it_cannot_begin_before_the_network_is_sparse(options, says):
    with pytest.raises(UserError, match=says):
        Sparsifier(smooth(), **{"method": "st3", "schedule": RAMP, "length": STEPS} | options)
    Sparsifier(smooth(), ProbMask(until=20), RAMP, length=STEPS, finetune_from=20)


def test_the_setting_is_a_duration_from_the_end():
    length = Length(10, 17)
    assert RampSettings(finetune=Duration(2, "ep")).finetune_from(length) == 150
    assert RampSettings().finetune_from(length) is None
    with pytest.raises(UserError, match=r"schedule.finetune=100% fills the whole training"):
        RampSettings(finetune=Duration(100, "%")).finetune_from(length)
