"""Methods that keep masks, captured against called: steps that decide on the host run beside the graph."""

import copy
import functools
from dataclasses import replace

import pytest
import torch
from graph_cases import PLAN, Graphs, Watcher, assert_same_training, content, images, make_state
from helpers import assert_same
from training_cases import FP32, train_epoch

from st3.durations import Length
from st3.sparsify import METHODS, AlternatingPhases, Constant, Dense, PolynomialRamp, thresholds
from st3.sparsify.methods import ACDC, GMP, SET, STR, Feather, GraNet, ProbMask, RigL, TopKAST
from st3.sparsify.thresholds import weighted_quantile
from st3.training.state import TrainingState
from st3.training.step import CapturedStep, EagerStep

STEPS = 48
RAMP = PolynomialRamp(final=0.8, start=6, end=30)
PHASES = AlternatingPhases(final=0.8, start=6, period=8, last_dense=30, end=38)
SPARSE = Constant(0.8)

CASES = {
    "gmp": (GMP(every=7), RAMP),
    "gmp uniform": (GMP(every=7, allocation="uniform"), RAMP),
    "rigl": (RigL(every=7, until=40), SPARSE),
    "set": (SET(every=7, until="100%"), SPARSE),
    "granet": (GraNet(every=7), RAMP),
    "topkast": (TopKAST(), SPARSE),
    "str": (STR(threshold_init=-3.0), SPARSE),
    "probmask": (ProbMask(until=6), PolynomialRamp(final=0.8, start=1, end=4)),
    "acdc": (ACDC(), PHASES),
    "acdc, one dense step": (ACDC(), AlternatingPhases(final=0.8, start=4, period=10, last_dense=14, end=15)),
    "feather": (Feather(theta=0.5), RAMP),
    "dense": (Dense(), SPARSE),
}
UPDATES = {"rigl": range(7, 40, 7), "set": range(7, STEPS, 7)}
"""Steps that run beside the one graph, and do not end it."""


@pytest.fixture
def graphs(monkeypatch) -> Graphs:
    # Where weights are on the host, the plain quantile is found there, which cannot be captured.
    def elsewhere(values, q):
        return weighted_quantile(values, torch.ones_like(values, dtype=torch.int64), q)

    monkeypatch.setattr(thresholds, "quantile", elsewhere)
    return Graphs(monkeypatch)


def trained(method, schedule, make_step, accumulate=1) -> tuple[TrainingState, Watcher]:
    state, watcher = make_state(method, schedule, length=STEPS), Watcher()
    plan = replace(PLAN, length=Length(STEPS), accumulate=accumulate)
    step = make_step(EagerStep(state, plan, FP32, state.model))
    train_epoch(state, images(STEPS * accumulate), plan, FP32, step, watcher, dict)
    return state, watcher


@functools.cache
def called(name: str, accumulate: int = 1) -> tuple[TrainingState, Watcher]:
    return trained(*CASES[name], lambda eager: eager, accumulate)


def test_every_method_that_keeps_something_between_steps_is_here():
    assert {method.name for method, _ in CASES.values()} == METHODS.keys() - {"st3", "st3_sigma", "hard_ste"}


@pytest.mark.parametrize(
    ("name", "accumulate"),
    [*((name, 1) for name in CASES), ("rigl", 2), ("probmask", 2), ("acdc", 2)],  # gradients of two passes
)
def test_captured_is_called_bit_for_bit(name, accumulate, graphs):
    method, schedule = CASES[name]
    captured = trained(method, schedule, lambda eager: CapturedStep(eager, required=True), accumulate)
    assert_same_training(called(name, accumulate), captured)
    assert graphs.replays > STEPS // 4
    assert graphs.replays + graphs.beside == STEPS
    if name in UPDATES:
        assert graphs.captures == 1
        assert graphs.beside == CapturedStep.WARM_UP + len(UPDATES[name])
    assert (sum(captured[1].steps_seen[-1]["zeros"]) > 0) == (name != "dense")


@pytest.mark.parametrize(
    ("name", "first"),
    [*((name, 13) for name in CASES), ("acdc", 31), ("gmp", 31), ("granet", 31)],  # in a dense phase, after the ramp
)
def test_a_captured_run_continues_captured(name, first, graphs):
    method, schedule = CASES[name]
    state, plan = make_state(method, schedule, length=STEPS), replace(PLAN, length=Length(first))
    step = CapturedStep(EagerStep(state, plan, FP32, state.model), required=True)
    train_epoch(state, images(STEPS)[:first], plan, FP32, step, Watcher(), dict)
    assert graphs.replays > 0
    torch.manual_seed(99)
    rest = replace(PLAN, length=Length(STEPS))
    other, watcher = make_state(method, schedule, length=STEPS), Watcher()
    step = CapturedStep(EagerStep(other, rest, FP32, other.model), required=True)
    other.load_state_dict(copy.deepcopy(state.state_dict()))
    train_epoch(other, images(STEPS)[first:], rest, FP32, step, watcher, dict)
    assert_same(called(name)[1].steps_seen[first:], watcher.steps_seen)
    assert_same(content(called(name)[0]), content(other))
