"""When a state is saved, and that a run which goes on from any of them is the run that was never interrupted."""

import math
import signal

import pytest
from helpers import assert_same
from test_loop import make_state, network, stepper
from training_cases import FP32, Batches, Recorder, data_of, fit, keeper_of, make_plan, plain

from st3.durations import Interval, Length
from st3.errors import NotFiniteError, UserError
from st3.optim.lr_schedules import CosineSettings
from st3.sparsify import PolynomialRamp
from st3.training.signals import Interruption, Signals


@pytest.mark.parametrize(
    ("text", "seconds", "steps"),
    [("10min", 600, None), ("0.5 min", 30, None), ("500st", None, 500), ("0", None, None), (" 1st ", None, 1)],
)
def test_intervals_are_minutes_or_steps(text, seconds, steps):
    assert Interval.parse(text) == Interval(seconds, steps)


@pytest.mark.parametrize("text", ["", "10", "10s", "5ep", "-1min", "0min", "0st", "min", "1e3st", "nan", "infmin"])
def test_another_form_is_refused(text):
    with pytest.raises(UserError, match=r"checkpoint_every=.*write 10min, 500st"):
        Interval.parse(text)


PLAN = make_plan(
    epochs=4,
    steps_per_epoch=5,
    sparsity=PolynomialRamp(final=0.6, start=5, end=10),
    target_sparsity=0.6,
    clip_norm=1.0,
    log_every=3,
    eval_every=2,
    lr_schedule=CosineSettings(warmup=2).over(Length(5, 4)),
)


def fresh():
    return make_state(PLAN, network(dropout=0.3), ema=0.9)


class StopsAt(Recorder):
    """Is asked to end after so many steps, or before a batch of an evaluation."""

    def __init__(self, signals, step=0):
        super().__init__()
        self.signals, self.stop = signals, step

    def progress(self):
        super().progress()
        if self.steps == self.stop:
            self.signals.asked = signal.SIGTERM


def go(state, recorder, keeper, test=None):
    data = data_of(Batches(5), None, test or Batches(2))
    fit(state, data, PLAN, FP32, stepper(state, PLAN), recorder, dict, keeper)
    return recorder


@pytest.fixture(scope="module")
def whole():
    state, recorder = fresh(), Recorder()
    return state, go(state, recorder, keeper_of(recorder))


def assert_continues(whole, stopped: StopsAt, state) -> None:
    """From the last checkpoint, to the same state, rows and scores."""
    other, rest = fresh(), Recorder()
    other.load_state_dict(stopped.checkpoints[-1])
    go(other, rest, keeper_of(rest))
    assert_same(_lasting(whole[0].state_dict()), _lasting(other.state_dict()))
    timed = [[{key: row[key] for key in ("step", "train_loss", "lr")} for row in each] for each in
             (whole[1].rows, stopped.rows + rest.rows)]  # fmt: skip
    assert timed[0] == timed[1]
    assert whole[1].evaluations == stopped.evaluations + rest.evaluations


def _lasting(saved: dict) -> dict:
    """Without what wall time decides, and the state of the generators, which are drawn anew for each epoch."""
    kept = plain(saved)
    for own in kept["processes"]:
        own.pop("random")
    for group in kept["optimizer"]["param_groups"]:
        group.pop("lr")  # which the next step sets
    kept["row"] = {}
    return kept


@pytest.mark.parametrize("step", [1, 2, 3, 4, 5, 6, 9, 10, 12, 14, 15, 19, 20])
def test_a_run_that_is_asked_to_end_goes_on_as_if_it_had_not_been(whole, step):
    signals, state = Signals(), fresh()
    recorder = StopsAt(signals, step)
    with pytest.raises(Interruption, match="SIGTERM"):
        go(state, recorder, keeper_of(recorder, signals=signals))
    assert recorder.checkpoints[-1]["step"] == state.step == step
    assert_continues(whole, recorder, state)


@pytest.mark.parametrize(("served", "step"), [(0, 10), (1, 10), (2, 20), (3, 20)])
def test_an_evaluation_is_not_waited_for_and_made_again(whole, served, step):
    signals, state, batches = Signals(), fresh(), iter(range(4))

    class Asking(Batches):
        def epoch(self, epoch, start=0):
            for batch in super().epoch(epoch):
                if next(batches) == served:
                    signals.asked = signal.SIGTERM
                yield batch

    recorder = StopsAt(signals)
    with pytest.raises(Interruption):
        go(state, recorder, keeper_of(recorder, signals=signals), Asking(2))
    assert recorder.checkpoints[-1]["step"] == step
    assert_continues(whole, recorder, state)


@pytest.mark.parametrize(
    ("interval", "steps"), [("2st", [2, 4, 5, 6, 8, 10, 10, 12, 14, 15, 16, 18, 20, 20]), ("0", [5, 10, 15, 20])]
)
def test_states_are_saved_every_so_many_steps_and_where_epochs_end(interval, steps):
    state, recorder = fresh(), Recorder()
    go(state, recorder, keeper_of(recorder, interval))
    assert [each["step"] for each in recorder.checkpoints] == steps


def test_states_are_saved_every_so_many_minutes(monkeypatch):
    state, recorder = fresh(), Recorder()
    clock = type("clock", (), {"monotonic": lambda: 20.0 * recorder.steps})  # 20 s a step
    monkeypatch.setattr("st3.training.keeper.time", clock)
    go(state, recorder, keeper_of(recorder, "1min"))
    assert [each["step"] for each in recorder.checkpoints if each["step"] % 5] == [3, 8, 13, 18]  # 5, 10, … end epochs


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_state_whose_loss_is_not_finite_is_not_saved(value):
    state, recorder = fresh(), Recorder()
    state.loss_sum.fill_(value)
    with pytest.raises(NotFiniteError, match="not finite after step 0"):
        keeper_of(recorder).save(state)
    assert not recorder.checkpoints
