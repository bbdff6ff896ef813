"""Methods that keep masks, captured against called: steps that decide on the host run beside the graph."""

import copy
from dataclasses import replace

import pytest
import torch
from test_loop import FP32
from test_step import PLAN, Graphs, Watcher, assert_same, assert_same_training, content, images, network

from st3 import Sparsifier
from st3.sparsify import METHODS, AlternatingPhases, Constant, PolynomialRamp
from st3.sparsify.methods import acdc, feather, gmp, granet, probmask, rigl, str_, topkast
from st3.sparsify.thresholds import weighted_quantile
from st3.training.ema import RawAverage
from st3.training.loop import train_epoch
from st3.training.optimizers import parameter_groups
from st3.training.state import TrainingState
from st3.training.step import CapturedStep, EagerStep

STEPS = 48
RAMP = PolynomialRamp(final=0.8, start=6, end=30)
PHASES = AlternatingPhases(final=0.8, start=6, period=8, last_dense=30, end=38)
SPARSE = Constant(0.8)

CASES = {
    "gmp": (gmp.GMP(every=7), RAMP),
    "gmp uniform": (gmp.GMP(every=7, allocation="uniform"), RAMP),
    "rigl": (rigl.RigL(every=7, until=40), SPARSE),
    "set": (rigl.RigL(every=7, growth="random"), SPARSE),
    "granet": (granet.GraNet(every=7, until=STEPS), RAMP),
    "topkast": (topkast.TopKAST(), SPARSE),
    "str": (str_.STR(threshold_init=-3.0), SPARSE),
    "probmask": (probmask.ProbMask(until=6), PolynomialRamp(final=0.8, start=1, end=4)),
    "acdc": (acdc.ACDC(), PHASES),
    "acdc, one dense step": (acdc.ACDC(), AlternatingPhases(final=0.8, start=4, period=10, last_dense=14, end=15)),
    "feather": (feather.Feather(theta=0.5), RAMP),
    "dense": (METHODS["dense"], SPARSE),
}


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    # Where weights are on the host, the plain quantile is found there, which cannot be captured.
    def elsewhere(values, q):
        return weighted_quantile(values, torch.ones_like(values, dtype=torch.int64), q)

    for module in (topkast, feather):
        monkeypatch.setattr(module, "quantile", elsewhere)
    return Graphs(monkeypatch)


def make_state(method, schedule) -> TrainingState:
    model = network().to(memory_format=torch.channels_last)
    groups = parameter_groups(model, weight_decay=1e-3)
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, fused=True)
    sparsifier = Sparsifier(model, method, schedule).attach(optimizer)
    return TrainingState(model, optimizer, sparsifier, FP32.scaler(), RawAverage(model, sparsifier, 0.9))


def trained(method, schedule, make_step, accumulate=1) -> tuple[TrainingState, Watcher]:
    state, watcher = make_state(method, schedule), Watcher()
    plan = replace(PLAN, steps_per_epoch=STEPS, accumulate=accumulate)
    step = make_step(EagerStep(state, plan, FP32, state.model))
    train_epoch(state, images(STEPS * accumulate), plan, FP32, step, watcher, dict)
    return state, watcher


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(("method", "schedule"), CASES.values(), ids=CASES)
def test_captured_is_called_bit_for_bit(method, schedule, accumulate, graphs):
    called = trained(method, schedule, lambda eager: eager, accumulate)
    captured = trained(method, schedule, lambda eager: CapturedStep(eager, required=True), accumulate)
    assert_same_training(called, captured)
    assert graphs.replays > STEPS // 4
    assert graphs.replays + graphs.beside == STEPS
    if isinstance(method, rigl.RigL):
        assert graphs.captures == 1  # updates run beside it, and do not end it
        assert graphs.beside == CapturedStep.WARM_UP + len(range(7, method.until or STEPS, 7))
    assert (sum(captured[1].steps_seen[-1]["zeros"]) > 0) == (method is not METHODS["dense"])


@pytest.mark.parametrize("first", [13, 21, 31])
@pytest.mark.parametrize(("method", "schedule"), CASES.values(), ids=CASES)
def test_a_captured_run_continues_captured_and_called(method, schedule, first, graphs):
    called = trained(method, schedule, lambda eager: eager)
    state, plan = make_state(method, schedule), replace(PLAN, steps_per_epoch=first)
    step = CapturedStep(EagerStep(state, plan, FP32, state.model), required=True)
    train_epoch(state, images(STEPS)[:first], plan, FP32, step, Watcher(), dict)
    assert graphs.replays > 0
    rest = replace(PLAN, steps_per_epoch=STEPS - first)
    for way in (lambda eager: eager, lambda eager: CapturedStep(eager, required=True)):
        torch.manual_seed(99)
        other, watcher = make_state(method, schedule), Watcher()
        other_step = way(EagerStep(other, rest, FP32, other.model))
        other.load_state_dict(copy.deepcopy(state.state_dict()))
        train_epoch(other, images(STEPS)[first:], rest, FP32, other_step, watcher, dict)
        assert_same(called[1].steps_seen[first:], watcher.steps_seen)
        assert_same(content(called[0]), content(other))
