"""The training loop. It knows neither method nor data set nor logger."""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from st3.data import Data
from st3.training.clocks import DataClock
from st3.training.keeper import Keeper
from st3.training.machine import Machine
from st3.training.plan import Plan
from st3.training.recorder import Recorder
from st3.training.state import TrainingState
from st3.training.step import Step, not_finite


def fit(
    state: TrainingState,
    data: Data,
    plan: Plan,
    machine: Machine,
    step: Step,
    recorder: Recorder,
    keeper: Keeper,
    measure: Callable[[], dict[str, Any]],
) -> None:
    """Train from where `state` is to `plan.epochs`.

    Every epoch starts from a seed made of `plan.seed` and its number, and a state within an epoch knows those of the
    generators: so a run that is continued is the run that was never interrupted. `measure()` gives what a row says of
    the sparse network.

    Raises `NotFiniteError` when the loss is not finite, `Interruption` where the run was asked to end, `LonelyError`
    for what only this of several processes has met.
    """
    processes = machine.processes
    state.start_counting()
    while True:
        if evaluation_is_due(state, plan):
            network = state.network()
            scores: dict[str, Any] = {"epoch": state.epoch}
            for split, loader in {"val": data.val, "test": data.test}.items():
                if loader is not None:
                    batches = keeper.watched(state, processes.alone(loader.epoch(0)))
                    found = evaluate(network, batches, machine)
                    scores |= {f"{split}_{name}": value for name, value in found.items()}
            state.scores = scores
            state.count_seconds()
            recorder.evaluation(state, is_best=_update_best(state, plan))
            keeper.save(state)
        if state.epoch == plan.epochs:
            break
        done = state.step - state.epoch * plan.steps_per_epoch
        if done:
            state.set_random_states()
        else:
            seed_everything(plan.seed, state.epoch, processes.rank)
        batches = processes.alone(data.train.epoch(state.epoch, start=done * plan.accumulate))
        train_epoch(state, batches, plan, machine, step, recorder, keeper, measure)
        state.epoch += 1
        state.average_buffers(processes)
        state.count_seconds()
        if not evaluation_is_due(state, plan):
            keeper.save(state)


def train_epoch(
    state: TrainingState,
    batches: Iterable[tuple[Tensor, Tensor]],
    plan: Plan,
    machine: Machine,
    step: Step,
    recorder: Recorder,
    keeper: Keeper,
    measure: Callable[[], dict[str, Any]],
) -> None:
    """The optimizer steps that are left of the epoch. Waits for the device where a row is due, and in fp16 for the
    scaler."""
    state.model.train()
    clock = DataClock(machine.device)
    batches = clock.timed(batches)
    since, end = time.perf_counter() - state.row_seconds, (state.epoch + 1) * plan.steps_per_epoch
    while state.step < end:
        lr = plan.lr * plan.lr_schedule.value(state.step)
        kind = state.sparsifier.next_step(state.step)  # the ramp follows the plan past steps that the scaler skipped
        warm = step.is_warm(kind)
        if not warm:  # what was issued before is not part of it
            machine.wait()
            state.data_seconds += clock.read()
            begin = time.perf_counter()
        state.loss_sum += step(itertools.islice(batches, plan.accumulate), lr, kind)
        if not warm:
            machine.wait()
            waited = clock.read()
            state.data_seconds += waited
            state.warmup_seconds += time.perf_counter() - begin - waited
        state.step += 1
        if state.average:
            state.average.update()
        recorder.progress()
        if state.step % plan.log_every == 0 or state.step == end:
            steps = state.step - state.row_step
            train_loss = float(machine.processes.sum_(state.loss_sum)) / (steps * machine.processes.world_size)
            if not math.isfinite(train_loss):
                raise not_finite(state, lr)
            state.guessing_steps = state.guessing_steps + steps if guesses(train_loss, plan.classes) else 0
            rate = steps * plan.batch_size / (time.perf_counter() - since)
            state.data_seconds += clock.read()
            recorder.row(state, {"train_loss": train_loss, "lr": lr, **measure(), "images_per_second": rate})
            state.loss_sum.zero_()
            since, state.row_step = time.perf_counter(), state.step
        state.row_seconds = time.perf_counter() - since
        keeper.after_step(state)


def evaluation_is_due(state: TrainingState, plan: Plan) -> bool:
    """Whether an epoch has ended whose network is to be evaluated, and is not yet."""
    ended = 0 < state.epoch * plan.steps_per_epoch == state.step
    wanted = state.epoch == plan.epochs or (state.epoch % plan.eval_every == 0)
    return ended and wanted and state.scores.get("epoch") != state.epoch


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    machine: Machine,
    observe: Callable[[Tensor, Tensor], object] = lambda best, labels: None,
) -> dict[str, float]:
    """Accuracy in percent over all images: `top1` and `top5` (of all classes where there are fewer than five), and
    `constant`: whether the logits are the same for all of several images (see `SAME`).

    Each of several processes brings its own share of the images; the result is that of all. `observe(best, labels)`
    is called with every batch: int64 [B, up to 5], the classes of the largest logits in the order that counts here
    (where logits tie, another search might order them otherwise), and int64 [B].
    """
    was_training = model.training
    model.eval()
    counts = torch.zeros(3, dtype=torch.int64, device=machine.device)  # correct, correct among five, all images
    extremes = torch.full((2, 1), -math.inf, device=machine.device)  # of −logit and logit, each class for itself
    for images, labels in batches:
        with machine.autocast():
            logits = model(images)
        best = logits.topk(min(5, logits.shape[1])).indices
        observe(best, labels)
        ranked = best == labels[:, None]
        counts += torch.stack([ranked[:, 0].sum(), ranked.sum(), torch.ones_like(labels).sum()])
        logits = logits.float() - logits.float().mean(1, keepdim=True)  # what all classes share decides nothing
        extremes = torch.maximum(extremes, torch.stack([(-logits).amax(0), logits.amax(0)]))
    model.train(was_training)
    top1, top5, images = machine.processes.sum_(counts).tolist()
    spread, largest = machine.processes.max_(torch.stack([extremes.sum(0).max(), extremes.max()])).tolist()
    return {
        "top1": 100 * top1 / images,
        "top5": 100 * top5 / images,
        "constant": images > 1 and spread <= max(SAME, torch.finfo(machine.dtype).eps) * largest,
    }


SAME = 1e-5
"""Logits that differ by no more between images, relative to the largest, are the same; in bf16 by up to 1/128."""


def guesses(loss: float, classes: int) -> bool:
    """Whether a network with this cross-entropy knows no more than one that gives all classes the same probability."""
    return loss > 0.99 * math.log(classes)


def seed_everything(seed: int, epoch: int, rank: int = 0) -> None:
    """Seed PyTorch's generators on all devices from the run's seed, the epoch and the process."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]))


def _update_best(state: TrainingState, plan: Plan) -> bool:
    """Whether the latest scores are the best at full sparsity, by validation where there is a split for it."""
    if not state.sparsifier.reaches(plan.target_sparsity):
        return False
    split = "val" if "val_top1" in state.scores else "test"
    if state.best and state.scores[f"{split}_top1"] <= state.best[f"{split}_top1"]:
        return False
    state.best = {"chosen_on": split, **state.scores}
    return True
