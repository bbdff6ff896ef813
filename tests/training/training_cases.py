"""What the tests of the loop, its steps and its records share."""

import copy
from functools import partial

import torch

from st3.data import Data
from st3.durations import Interval, Length
from st3.optim.lr_schedules import ConstantSettings
from st3.sparsify import Constant
from st3.training import loop
from st3.training.distributed import SINGLE
from st3.training.keeper import Keeper
from st3.training.machine import Machine
from st3.training.plan import Plan
from st3.training.signals import Signals
from st3.training.summary import Summary

FP32 = Machine(torch.device("cpu"))


class Batches:
    """A loader of `count` random batches [size, 6] in 3 classes, other ones each epoch."""

    def __init__(self, count=4, size=8, dtype=torch.float32, device="cpu"):
        self.count, self.size, self.dtype, self.device = count, size, dtype, device
        self.asked = []

    def epoch(self, epoch, start=0):
        self.asked.append(epoch)
        generator = torch.Generator().manual_seed(epoch)
        for number in range(self.count):
            inputs = torch.randn(self.size, 6, generator=generator, dtype=self.dtype)
            labels = torch.randint(3, (self.size,), generator=generator)
            if number >= start:
                yield inputs.to(self.device), labels.to(self.device)


class Recorder:
    """Keeps what the loop tells."""

    def __init__(self):
        self.steps, self.rows, self.evaluations, self.checkpoints = 0, [], [], []

    def progress(self):
        self.steps += 1

    def row(self, state, row):
        self.rows.append({"step": state.step, **row})

    def evaluation(self, state, is_best):
        self.evaluations.append((copy.deepcopy(state.scores), is_best))

    def checkpoint(self, state, content):
        self.checkpoints.append(copy.deepcopy(content))

    def close(self): ...


def keeper_of(recorder, interval="0", signals=None, processes=SINGLE) -> Keeper:
    return Keeper(processes, recorder, signals or Signals(), Interval.parse(interval))


def fit(state, data, plan, machine, step, recorder, measure, keeper=None) -> None:
    """The loop's, saving when epochs end."""
    keeper = keeper or keeper_of(recorder, processes=machine.processes)
    loop.fit(state, data, plan, machine, step, recorder, keeper, measure)


def train_epoch(state, batches, plan, machine, step, recorder, measure) -> None:
    """The loop's."""
    keeper = keeper_of(recorder, processes=machine.processes)
    loop.train_epoch(state, batches, plan, machine, step, recorder, keeper, measure)


def data_of(train, val, test) -> Data:
    return Data(train, val, test, classes=("a", "b", "c"))


def make_plan(*, epochs=3, steps_per_epoch=4, **changes) -> Plan:
    settings = {
        "classes": 3, "batch_size": 8, "accumulate": 1, "lr": 0.2, "sparsity": Constant(0.5),
        "lr_schedule": ConstantSettings().over(Length(steps_per_epoch, epochs)),
        "target_sparsity": 0.5, "finetune_from": None, "label_smoothing": 0.0, "clip_norm": 0.0, "seed": 0,
        "eval_every": 1, "log_every": 2,
    }  # fmt: skip
    return Plan(length=Length(steps_per_epoch, epochs), **settings | changes)


def plain(value):
    """Nested state without what wall time decides."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items() if not str(k).endswith("seconds")}
    return value


SUMMARY = partial(
    Summary,
    top1=50.0, top5=90.0, sparsity_target=0.5, target="weights", sparsity=0.5, zeros=6, prunable=12, macs_dense=21,
    macs=15, epochs=2, steps=8, seconds=1.0, warmup_seconds=0.5, data_seconds=0.1, peak_memory_bytes=1, processes=1,
    method="st3", model="mlp", dataset="fake", seed=0, run_dir="run", st3="0",
)  # fmt: skip
"""Of a small run; `SUMMARY(finished=True)` changes a field."""
