"""The training loop. It knows neither method nor data set nor logger."""

import itertools
import math
import time
from collections.abc import Callable, Iterable
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from st3.data import Data
from st3.errors import UserError
from st3.training.plan import Plan
from st3.training.precision import Precision
from st3.training.state import TrainingState


class Recorder(Protocol):
    """Who listens."""

    def progress(self) -> None:
        """One more optimizer step."""

    def row(self, state: TrainingState, row: dict) -> None:
        """Metrics of the steps since the last row."""

    def evaluation(self, state: TrainingState, is_best: bool) -> None:
        """`state.scores` are new."""

    def checkpoint(self, state: TrainingState) -> None:
        """An epoch is complete."""


def fit(
    state: TrainingState,
    data: Data,
    plan: Plan,
    precision: Precision,
    recorder: Recorder,
    measure: Callable[[], dict],
) -> None:
    """Train from `state.epoch` to `plan.epochs`.

    Every epoch starts from a seed made of `plan.seed` and its number, so that a run continued after any finished
    epoch is the run that was never interrupted. `measure()` gives what a row says of the sparse network.

    Raises `UserError` when the loss is not finite.
    """
    while state.epoch < plan.epochs:
        begin = time.perf_counter()
        seed_everything(plan.seed, state.epoch)
        train_epoch(state, data.train.epoch(state.epoch), plan, precision, recorder, measure)
        state.epoch += 1
        evaluated = state.epoch % plan.eval_every == 0 or state.epoch == plan.epochs
        if evaluated:
            network = state.network()
            splits = {"val": data.val, "test": data.test}
            state.scores = {"epoch": state.epoch}
            for split, loader in splits.items():
                if loader is not None:
                    scores = evaluate(network, loader.epoch(0), precision)
                    state.scores |= {f"{split}_{name}": value for name, value in scores.items()}
        state.seconds += time.perf_counter() - begin
        if evaluated:
            recorder.evaluation(state, is_best=_update_best(state, plan))
        recorder.checkpoint(state)


def train_epoch(
    state: TrainingState,
    batches: Iterable[tuple[Tensor, Tensor]],
    plan: Plan,
    precision: Precision,
    recorder: Recorder,
    measure: Callable[[], dict],
) -> None:
    """`plan.steps_per_epoch` optimizer steps. Waits for the device where a row is due, and in fp16 for the scaler."""
    model, optimizer, scaler = state.model, state.optimizer, state.scaler
    model.train()
    batches = iter(batches)
    total, images_seen, since, last_step = 0.0, 0, time.perf_counter(), state.step
    for index in range(plan.steps_per_epoch):
        lr = plan.lr * plan.lr_schedule.value(state.step)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for images, labels in itertools.islice(batches, plan.accumulate):
            with precision.autocast():  # which computes the loss in float32
                loss = F.cross_entropy(model(images), labels, label_smoothing=plan.label_smoothing) / plan.accumulate
            scaler.scale(loss).backward()
            total = total + loss.detach()
            images_seen += len(labels)
        if plan.clip_norm is not None:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), plan.clip_norm)
        state.sparsifier.step = state.step  # the ramp follows the plan also past steps that the scaler skipped
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        if state.average:
            state.average.update()
        recorder.progress()
        if state.step % plan.log_every == 0 or index == plan.steps_per_epoch - 1:
            train_loss = float(total) / (state.step - last_step)
            if not math.isfinite(train_loss):
                raise UserError(f"the loss is {train_loss} at step {state.step}: lower optimizer.lr or set clip_norm")
            rate = images_seen / (time.perf_counter() - since)
            recorder.row(state, {"train_loss": train_loss, "lr": lr, **measure(), "images_per_second": rate})
            total, images_seen, since, last_step = 0.0, 0, time.perf_counter(), state.step


@torch.no_grad()
def evaluate(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], precision: Precision) -> dict[str, float]:
    """Accuracy in percent over all images: `top1` and `top5` (of all classes where there are fewer than five)."""
    was_training = model.training
    model.eval()
    hits, count = 0, 0
    for images, labels in batches:
        with precision.autocast():
            logits = model(images)
        ranked = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]
        hits = hits + torch.stack([ranked[:, 0].sum(), ranked.sum()])
        count += len(labels)
    model.train(was_training)
    top1, top5 = (100 * hits.double() / count).tolist()
    return {"top1": top1, "top5": top5}


def seed_everything(seed: int, epoch: int) -> None:
    """Seed PyTorch's generators on all devices from the run's seed and the epoch."""
    torch.manual_seed(int(np.random.SeedSequence([seed, epoch]).generate_state(1)[0]))


def _update_best(state: TrainingState, plan: Plan) -> bool:
    """Whether the latest scores are the best at full sparsity, by validation where there is a split for it."""
    if state.sparsifier.sparsity < plan.target_sparsity:
        return False
    split = "val" if "val_top1" in state.scores else "test"
    if state.best and state.scores[f"{split}_top1"] <= state.best[f"{split}_top1"]:
        return False
    state.best = {"chosen_on": split, **state.scores}
    return True
