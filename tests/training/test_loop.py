"""The loop against hand-written steps, and its rules on best, rows, rates and continuing."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_same
from torch import nn
from training_cases import FP32, Batches, Recorder, data_of, fit, make_plan, plain, train_epoch

from st3 import Sparsifier
from st3.durations import Length
from st3.errors import NotFiniteError
from st3.optim.lr_schedules import CosineSettings
from st3.optim.optimizers import SGD
from st3.sparsify import Constant, PolynomialRamp
from st3.sparsify.methods import STR
from st3.training.ema import RawAverage
from st3.training.loop import evaluate, guesses
from st3.training.machine import Machine
from st3.training.state import TrainingState
from st3.training.step import EagerStep

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class Fixed:
    """A loader that serves the same (inputs, labels) pairs always."""

    def __init__(self, *pairs):
        self.pairs = pairs

    def epoch(self, epoch, start=0):
        return iter(self.pairs[start:])


def network(dtype=torch.float32, dropout=0.0) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Dropout(dropout), nn.Linear(10, 3)).to(dtype)


def make_state(plan, model=None, ema=None, momentum=0.9, weight_decay=1e-3) -> TrainingState:
    model = model or network()
    optimizer = SGD(lr=plan.lr, weight_decay=weight_decay, momentum=momentum).build(model)
    sparsifier = Sparsifier(model, "st3" if plan.target_sparsity else "dense", plan.sparsity).attach(optimizer)
    average = RawAverage(model, sparsifier, ema) if ema else None
    return TrainingState(model, optimizer, sparsifier, FP32.scaler(), average)


def stepper(state, plan, machine=FP32) -> EagerStep:
    return EagerStep(state, plan, machine, state.model)


def train(state, plan, batches, recorder=None, machine=FP32) -> None:
    """One epoch."""
    step = stepper(state, plan, machine)
    train_epoch(state, batches, plan, machine, step, recorder or Recorder(), dict)


def run(state, plan, data=None, recorder=None, machine=FP32, measure=dict) -> Recorder:
    recorder = recorder or Recorder()
    data = data or data_of(Batches(plan.steps_per_epoch), None, Batches(1))
    fit(state, data, plan, machine, stepper(state, plan, machine), recorder, measure)
    return recorder


# One epoch equals hand-written steps ----------------------------------------------------------------------------------

DENSE = {"sparsity": Constant(0.0), "target_sparsity": 0.0, "epochs": 1}


def by_hand(model, batches, rates, smoothing=0.0, clip=0.0, momentum=0.9, weight_decay=1e-3) -> list[float]:
    """SGD with momentum from its definition; decay on the weights (2-D), none on the biases."""
    buffers, losses = {}, []
    for (inputs, labels), rate in zip(batches, rates, strict=True):
        log_p = model(inputs).log_softmax(1)
        classes = log_p.shape[1]
        target = F.one_hot(labels, classes) * (1 - smoothing) + smoothing / classes
        loss = -(target * log_p).sum(1).mean()
        losses.append(loss.item())
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.cat([g.flatten() for g in gradients]).norm()
        scale = min(1.0, clip / norm.item()) if clip else 1.0
        with torch.no_grad():
            for i, (p, g) in enumerate(zip(model.parameters(), gradients, strict=True)):
                g = g * scale + (weight_decay * p if p.ndim == 2 else 0)
                buffers[i] = g if i not in buffers else momentum * buffers[i] + g
                p -= rate * buffers[i]
    return losses


@pytest.mark.parametrize(
    ("changes", "smoothing", "clip"),
    [({}, 0.0, 0.0), ({"label_smoothing": 0.1}, 0.1, 0.0), ({"clip_norm": 0.05}, 0.0, 0.05)],
    ids=["plain", "label smoothing", "clipping"],
)
def test_an_epoch_equals_sgd_by_hand(changes, smoothing, clip):
    schedule = CosineSettings(warmup=2).over(Length(4))
    plan = make_plan(**DENSE, **changes, lr_schedule=schedule, log_every=1)
    model, other = network(torch.float64), network(torch.float64)
    recorder = Recorder()
    train(make_state(plan, model), plan, Batches(4, dtype=torch.float64).epoch(0), recorder)
    rates = [0.1, 0.2, 0.2, 0.1]  # warm-up, peak, and half a cosine down
    losses = by_hand(other, Batches(4, dtype=torch.float64).epoch(0), rates, smoothing, clip)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)  # the loop's loss is float32
    assert [row["lr"] for row in recorder.rows] == pytest.approx(rates)
    assert [row["train_loss"] for row in recorder.rows] == pytest.approx(losses, rel=1e-5)


def test_the_clipped_gradient_bounds_the_update():
    plan = make_plan(**DENSE, clip_norm=1e-3, steps_per_epoch=1)
    state = make_state(plan, momentum=0.0, weight_decay=0.0)
    before = nn.utils.parameters_to_vector(state.model.parameters()).detach().clone()
    train(state, plan, Batches(1).epoch(0))
    moved = nn.utils.parameters_to_vector(state.model.parameters()).detach() - before
    assert moved.norm().item() == pytest.approx(0.2 * 1e-3, rel=1e-2)


@pytest.mark.parametrize("clip_norm", [0.0, 0.05])
def test_accumulated_passes_equal_the_whole_batch(clip_norm):
    whole, parts = (make_plan(accumulate=n, clip_norm=clip_norm, log_every=1) for n in (1, 4))
    pairs = list(Batches(4, size=8, dtype=torch.float64).epoch(0))
    quarters = [(x[i : i + 2], y[i : i + 2]) for x, y in pairs for i in range(0, 8, 2)]
    results = []
    for plan, batches in ((whole, pairs), (parts, quarters)):
        state, recorder = make_state(plan, network(torch.float64)), Recorder()
        train(state, plan, batches, recorder)
        results.append((state, recorder))
    (one, one_recorder), (four, four_recorder) = results
    assert one.step == four.step == 4
    for a, b in zip(one.model.parameters(), four.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)
    losses = [[row["train_loss"] for row in r.rows] for r in (one_recorder, four_recorder)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bf16_stays_near_float32_and_keeps_float32_weights():
    states = []
    for machine in (FP32, Machine(CPU, "bf16")):
        plan = make_plan(epochs=1)
        states.append(make_state(plan))
        run(states[-1], plan, machine=machine)
    for a, b in zip(states[0].model.parameters(), states[1].model.parameters(), strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.1)


# Rows -----------------------------------------------------------------------------------------------------------------


def test_a_row_every_log_every_steps_and_at_each_epochs_end_without_gaps():
    plan = make_plan(steps_per_epoch=5, epochs=2, log_every=3)
    state = make_state(plan)
    recorder = run(state, plan, measure=lambda: {"seen": state.step})
    assert [row["step"] for row in recorder.rows] == [3, 5, 6, 9, 10]
    assert [row["seen"] for row in recorder.rows] == [3, 5, 6, 9, 10]
    assert recorder.steps == state.step == 10
    assert all(row["images_per_second"] > 0 for row in recorder.rows)


def test_a_rows_loss_is_the_mean_since_the_row_before():
    plan = make_plan(**DENSE, log_every=3)
    fine = make_plan(**DENSE, log_every=1)
    rows = [run(make_state(p), p).rows for p in (plan, fine)]
    single = [row["train_loss"] for row in rows[1]]
    assert [row["train_loss"] for row in rows[0]] == pytest.approx([sum(single[:3]) / 3, single[3]])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ends_the_run_before_a_checkpoint(value):
    plan = make_plan(log_every=100)
    good = list(Batches(4).epoch(0))
    bad = [
        (torch.full_like(inputs, value), labels) if i == 1 else (inputs, labels)
        for i, (inputs, labels) in enumerate(good)
    ]
    recorder = Recorder()
    with pytest.raises(NotFiniteError, match=r"after step 1 .*optimizer\.lr.*clip_norm"):
        run(make_state(plan), plan, data_of(Fixed(*bad), None, Batches(1)), recorder)
    assert not recorder.rows
    assert not recorder.checkpoints


# Evaluation -----------------------------------------------------------------------------------------------------------


class Given(nn.Module):
    """Its input is its output; the dropout would disturb it in training mode."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(x)


def hand_count(logits, labels) -> tuple[float, float]:
    """Percent of labels ranked first, and among the first five, by counting the logits above the label's."""
    above = [
        sum(value > row[label] for value in row) for row, label in zip(logits.tolist(), labels.tolist(), strict=True)
    ]
    return 100 * sum(a == 0 for a in above) / len(above), 100 * sum(a < 5 for a in above) / len(above)


@pytest.mark.parametrize("classes", [2, 4, 5, 6, 30])
def test_top1_and_top5_of_a_hand_count_with_a_smaller_last_batch(classes):
    generator = torch.Generator().manual_seed(classes)
    logits = torch.randn(23, classes, generator=generator)
    labels = torch.randint(classes, (23,), generator=generator)
    model = Given().train()
    scores = evaluate(model, zip(logits.split(8), labels.split(8), strict=True), FP32)
    top1, top5 = hand_count(logits, labels)
    assert scores == pytest.approx({"top1": top1, "top5": top5, "constant": False})
    assert 0 < top1 < 100
    assert (top5 == 100) == (classes <= 5)
    assert model.training
    assert model.dropout.training


def test_an_observer_sees_the_ranks_that_are_counted_also_where_logits_tie():
    logits = torch.randint(3, (40, 9), generator=torch.Generator().manual_seed(0)).float()
    labels, seen = torch.arange(40) % 9, []
    batches = zip(logits.split(16), labels.split(16), strict=True)
    scores = evaluate(Given(), batches, FP32, lambda best, labels: seen.append((best == labels[:, None], labels)))
    hits = torch.cat([hit for hit, _ in seen])
    assert torch.equal(torch.cat([labels for _, labels in seen]), labels)
    assert (scores["top1"], scores["top5"]) == (100 * int(hits[:, 0].sum()) / 40, 100 * int(hits.sum()) / 40)


def test_evaluation_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)).eval()
    before = copy.deepcopy(model.state_dict())
    scores = evaluate(model, Batches(2).epoch(0), FP32)
    assert not model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(type(value) in (float, bool) for value in scores.values())


@pytest.mark.parametrize(
    ("logits", "constant"),
    [
        ([[1.0, 2.0, 9.0]] * 5, True),
        ([[1.0, 2.0, 9.0]] * 4 + [[1.0, 2.0, 9.00001]], True),
        ([[1.0, 2.0, 9.0]] * 4 + [[1.0, 2.0, 9.02]], False),
        ([[1.0, 2.0, 3.0], [5.0, 6.0, 7.0]], True),  # the same probabilities
        ([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], False),
        ([[0.0, 0.0, 0.0]] * 2, True),
        ([[1.0, 2.0, 9.0]], False),  # one image says nothing
        ([[1.0, float("nan"), 9.0]] * 2, False),
    ],
)
def test_logits_that_do_not_depend_on_the_image_are_noticed(logits, constant):
    logits, labels = torch.tensor(logits), torch.zeros(len(logits), dtype=torch.int64)
    for size in (1, 2, 5):
        assert evaluate(Given(), zip(logits.split(size), labels.split(size), strict=True), FP32)["constant"] == constant


def test_what_bf16_rounds_away_is_the_same():
    logits, labels = torch.tensor([[1.0, 2.0, 9.0], [1.0, 2.0, 9.02]]), torch.zeros(2, dtype=torch.int64)
    assert evaluate(Given(), [(logits, labels)], Machine(torch.device("cpu"), "bf16"))["constant"]


def test_steps_at_the_loss_of_guessing_are_counted_until_it_is_lower(monkeypatch):
    plan = make_plan(epochs=3)  # a row every two of its twelve steps
    state = make_state(plan)
    low = iter([True, True, False, True, True, True])
    monkeypatch.setattr("st3.training.loop.guesses", lambda loss, classes: next(low))
    run(state, plan, data_of(Batches(4), None, Batches(2)))
    saved = state.state_dict()
    assert state.guessing_steps == saved["guessing_steps"] == 6
    del saved["guessing_steps"]  # as earlier versions saved it
    fresh = make_state(plan)
    fresh.load_state_dict(saved)
    assert (fresh.step, fresh.guessing_steps) == (12, 0)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_a_loss_of_guessing_is_that_of_equal_probabilities(classes):
    labels = torch.arange(classes)
    for smoothing in (0.0, 0.1):
        alike = F.cross_entropy(torch.zeros(classes, classes), labels, label_smoothing=smoothing).item()
        assert guesses(alike, classes)
        knowing = F.cross_entropy(2 * torch.eye(classes), labels, label_smoothing=smoothing).item()
        assert not guesses(knowing, classes)


def test_evaluations_come_every_eval_every_epochs_and_after_the_last():
    plan = make_plan(epochs=5, eval_every=2)
    recorder = run(make_state(plan), plan)
    assert [scores["epoch"] for scores, _ in recorder.evaluations] == [2, 4, 5]
    assert len(recorder.checkpoints) == 5


def test_scores_are_of_the_average_where_one_is_kept():
    plan = make_plan(epochs=1)
    state = make_state(plan, ema=0.999)
    state.average.values["3.bias"][0] = 1e6  # four updates leave enough of it: the average always says class 0
    test = Batches(6)
    run(state, plan, data_of(Batches(4), None, test))
    labels = torch.cat([labels for _, labels in test.epoch(0)])
    assert state.scores["test_top1"] == pytest.approx(100 * (labels == 0).double().mean().item())
    assert state.scores["test_top1"] != evaluate(state.model, test.epoch(0), FP32)["top1"]


# Best -----------------------------------------------------------------------------------------------------------------


class Growing:
    """A loader whose k-th serving makes the share `shares[k]` of the labels right for `Constant0`."""

    def __init__(self, shares):
        self.shares = iter(shares)

    def epoch(self, epoch):
        right = round(10 * next(self.shares))
        yield torch.zeros(10, 6), torch.tensor([0] * right + [1] * (10 - right))


class Constant0(nn.Module):
    """Says class 0, whatever its one layer does."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        return self.layer(x) * 1e-9 + torch.tensor([1.0, 0.0, 0.0])


def best_of(plan, val, test):
    state = make_state(plan, Constant0())
    data = data_of(Batches(plan.steps_per_epoch), val and Growing(val), Growing(test))
    return state, [is_best for _, is_best in run(state, plan, data).evaluations]


def test_the_best_is_chosen_at_full_sparsity_only():
    ramp = PolynomialRamp(final=0.5, start=0, end=11)  # reached by the last step of the third epoch
    plan = make_plan(epochs=5, sparsity=ramp)
    state, best = best_of(plan, None, [0.9, 0.9, 0.3, 0.5, 0.5])
    assert best == [False, False, True, True, False]  # a tie stays with the earlier one
    assert state.best == {"chosen_on": "test", "epoch": 4, "test_top1": 50.0, "test_top5": 100.0, "test_constant": True}


def test_the_best_is_chosen_on_validation_where_there_is_one():
    plan = make_plan(epochs=3)
    state, best = best_of(plan, [0.2, 0.6, 0.4], [0.9, 0.1, 0.8])
    assert best == [True, True, False]
    assert state.best["chosen_on"] == "val"
    assert (state.best["epoch"], state.best["val_top1"], state.best["test_top1"]) == (2, 60.0, 10.0)


def test_a_dense_run_has_a_best_from_the_start():
    plan = make_plan(sparsity=Constant(0.0), target_sparsity=0.0)
    _, best = best_of(plan, None, [0.4, 0.3, 0.5])
    assert best == [True, False, True]


# Continuing -----------------------------------------------------------------------------------------------------------


class StopError(Exception):
    pass


class StopsAfter(Recorder):
    def __init__(self, epochs):
        super().__init__()
        self.left = epochs

    def checkpoint(self, state, content):
        super().checkpoint(state, content)
        self.left -= 1
        if not self.left:
            raise StopError


def test_the_best_network_of_a_method_that_goes_its_own_way_is_as_sparse_as_asked():
    plan = make_plan(epochs=2, sparsity=Constant(0.5), target_sparsity=0.5)
    for start, sparse in ((-20.0, False), (2.0, True)):  # thresholds of 2e-9 and 0.88
        model = network()
        optimizer = SGD(lr=1e-3, weight_decay=0.0, momentum=0.0).build(model)
        sparsifier = Sparsifier(model, STR(threshold_init=start), plan.sparsity).attach(optimizer)
        state = TrainingState(model, optimizer, sparsifier, FP32.scaler())
        run(state, plan)
        assert bool(state.best) == sparse


def test_a_checkpoint_does_not_decide_how_the_optimizer_computes_nor_its_settings():
    plan = make_plan(epochs=1)
    state, other = make_state(plan), make_state(plan)
    run(state, plan)
    saved = copy.deepcopy(state.state_dict())
    for group in saved["optimizer"]["param_groups"]:
        group.update(fused=True, foreach=True, weight_decay=0.5)
    other.load_state_dict(saved)
    for group in other.optimizer.param_groups:
        assert (group["fused"], group["foreach"]) == (None, None)
        assert group["weight_decay"] in (0.0, 1e-3)  # of biases, and of weights


@pytest.mark.parametrize("after", [1, 2, 3])
@pytest.mark.parametrize("ema", [None, 0.9])
def test_an_interrupted_run_continues_as_if_it_had_not_been(after, ema, tmp_path):
    ramp = PolynomialRamp(final=0.6, start=5, end=10)  # interrupted before, in and after the ramp
    plan = make_plan(
        epochs=4,
        sparsity=ramp,
        target_sparsity=0.6,
        clip_norm=1.0,
        lr_schedule=CosineSettings(warmup=0).over(Length(16)),
    )

    def fresh():
        return make_state(plan, network(dropout=0.3), ema=ema)

    whole = fresh()
    rows = run(whole, plan).rows
    first, recorder = fresh(), StopsAfter(after)
    with pytest.raises(StopError):
        run(first, plan, recorder=recorder)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    torch.rand(7)  # the generator stands elsewhere in the next sitting
    second = fresh()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    later = run(second, plan).rows
    assert_same(plain(whole.state_dict()), plain(second.state_dict()))
    assert [row["train_loss"] for row in rows] == [row["train_loss"] for row in recorder.rows + later]
    assert second.seconds > first.seconds


def test_a_finished_state_trains_no_further():
    plan = make_plan(epochs=2)
    state = make_state(plan)
    run(state, plan)
    before = copy.deepcopy(state.state_dict())
    recorder = run(state, plan)
    assert not recorder.steps
    assert not recorder.evaluations
    assert_same(before, state.state_dict())


def test_the_seed_decides_dropout_and_each_epoch_draws_anew():
    def losses(seed):
        plan = make_plan(**DENSE | {"epochs": 2}, seed=seed, lr=1e-12, log_every=1)
        same = Fixed(*[next(Batches(1).epoch(0))] * 4)
        model = network(dropout=0.5)
        return [row["train_loss"] for row in run(make_state(plan, model), plan, data_of(same, None, Batches(1))).rows]

    assert losses(3) == losses(3) != losses(4)
    assert len(set(losses(3))) == 8


def test_every_epoch_asks_the_loader_for_its_own_order():
    plan = make_plan(epochs=3)
    train, test = Batches(4), Batches(1)
    run(make_state(plan), plan, data_of(train, None, test))
    assert train.asked == [0, 1, 2]
    assert test.asked == [0, 0, 0]


# On a GPU -------------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_mixed_precision_on_cuda_is_as_sparse_and_near_float32(name):
    states = []
    for machine in (Machine(CUDA), Machine(CUDA, name)):
        plan = make_plan(epochs=2, clip_norm=1.0)
        state = make_state(plan, network().cuda())
        state.scaler = machine.scaler()
        if name == "fp16" and machine.precision == "fp16":
            state.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**10)  # no step is skipped
        run(state, plan, data_of(Batches(4, device="cuda"), None, Batches(1, device="cuda")), machine=machine)
        states.append(state)
    full, mixed = states
    assert abs(int(mixed.sparsifier.zeros().sum()) - 0.5 * mixed.sparsifier.prunable) <= 1
    assert mixed.sparsifier.step == full.sparsifier.step == 8
    for a, b in zip(full.model.parameters(), mixed.model.parameters(), strict=True):
        assert b.dtype == torch.float32
        torch.testing.assert_close(a, b, atol=0.05, rtol=0.1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_the_scaler_skips_moves_no_weight():
    plan = make_plan(epochs=1, steps_per_epoch=1)
    state = make_state(plan, network().cuda())
    state.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40)  # overflows
    before = copy.deepcopy(state.model.state_dict())
    train(state, plan, Batches(1, device="cuda").epoch(0), machine=Machine(CUDA, "fp16"))
    assert all(torch.equal(before[name], value) for name, value in state.model.state_dict().items())
    assert state.scaler.get_scale() < 2.0**40


def test_the_ramp_follows_the_plan_past_steps_that_the_scaler_skipped():
    plan = make_plan(sparsity=PolynomialRamp(final=0.5, start=0, end=11, power=1))
    state = make_state(plan)
    # Scaled by this, gradients are infinite until the scaler has halved its scale a few times.
    state.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    for parameter in state.model.parameters():
        parameter.register_hook(lambda gradient: gradient * 30)
    run(state, plan)
    assert state.scaler.get_scale() < 2.0**127
    assert state.sparsifier.sparsity == 0.5
    assert abs(state.sparsifier.zeros().sum().item() - 0.5 * state.sparsifier.prunable) <= 1
