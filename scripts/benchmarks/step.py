"""Whole steps of dense and sparse training on one resident batch."""

import gc
import math
import time
from argparse import Namespace
from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from itertools import product

import torch
from torch._inductor.utils import fresh_cache

from benchmarks import harness
from benchmarks.checks import check_weights, check_zeros
from benchmarks.harness import SPARSITY, Columns, Result, Section
from benchmarks.naive import Naive
from benchmarks.plain import PlainContender
from benchmarks.training import NOTES, Batch, Training, chosen, chosen_methods
from st3.compose import compose_config
from st3.config import Config
from st3.errors import UserError
from st3.sketch import sketch
from st3.training.machine import Machine
from st3.training.profiling import peak_memory, reset_peak_memory

MODES = "eager", "compiled", "captured", "compiled+captured"


class StepContender(Training):
    """A whole training step on `batch`."""

    def __init__(self, config: Config, method: str, mode: str, batch: Batch, machine: Machine, args: Namespace):
        super().__init__(method, mode, machine, contender=f"{method}, {mode}", method=method, mode=mode)
        self.config, self.batch, self.calls, self.alone = config, batch, args.steps, args.warm_up

    def build(self) -> None:
        self.captured = "captured" in self.group
        if self.captured and self.name == "naive":
            raise UserError("its threshold waits for the device in every step, which a CUDA graph cannot hold")
        if self.alone:  # another one says what it takes to warm up from empty caches
            other = copy(self)
            other.alone = False
            with fresh_cache():
                other.build()
                other.warm_up()
            self.result = other.result
            del other
            gc.collect()
        before, on = self.allocated(), {True: "on", False: "off"}
        config = replace(self.config, compile=on["compiled" in self.group], capture=on[self.captured])
        self.make(config, "dense" if self.name == "naive" else self.name)
        if self.captured and self.all_change:
            raise UserError("it draws masks in every step, which a CUDA graph cannot hold")
        # The wrapped layers keep their parameters, which is all that the optimizer knows.
        self.naive = Naive(self.state.model, SPARSITY) if self.name == "naive" else None
        self.interval, self.own_bytes = self.every, self.allocated() - before

    def allocated(self) -> int:
        return torch.cuda.memory_allocated(self.machine.device) if self.machine.device.type == "cuda" else 0

    def work(self) -> None:
        self.ordinary_step(self.batch)
        if self.naive:
            self.naive.update()

    def update(self) -> None:
        self.update_step(self.batch)

    def warm_up(self) -> None:
        """Seconds until steps take their usual time, and bytes at the peak of one such step."""
        device, others, begin = self.machine.device, self.allocated() - self.own_bytes, time.perf_counter()
        self.work()
        while not self.step.is_warm(self.sparsifier.next_step()):
            reset_peak_memory(device)  # so that the last one counts, where a captured step claims its memory
            self.work()
        self.machine.wait()
        seconds = time.perf_counter() - begin
        if not self.captured:  # without what trying algorithms took
            reset_peak_memory(device)
        for _ in range(2):  # the first projection comes after the first step
            self.work()
        if self.interval:
            self.update()
        self.machine.wait()
        peak = peak_memory(device) - others if device.type == "cuda" else None
        self.result = {"warm_up_seconds": seconds, "peak_bytes": peak} | self.result

    def check(self) -> Result:
        loss = float(self.final_step(self.batch))
        if not math.isfinite(loss):
            raise UserError(f"{self.name} ends with the loss {loss}: nothing reported")
        if not self.naive:
            return {"loss": loss, **check_weights(self.name, self.sparsifier)}
        self.naive.update()
        raw, kept = self.naive.weights, [w.abs() > self.naive.tau for w in self.naive.weights]
        return {"loss": loss, **check_zeros(self.name, self.naive.sparse(), raw, kept)}


def step_config(args: Namespace) -> Config:
    """A training of far more steps than are timed, one to an epoch."""
    return compose_config(
        [
            f"model={args.model}", "dataset=fake", f"dataset.classes={args.classes}",
            f"dataset.image_size={args.image_size}", f"dataset.train_images={args.batch}", f"batch_size={args.batch}",
            f"sparsity={SPARSITY}", "schedule=constant", "lr_schedule=constant", "optimizer.lr=0.01", "clip_norm=3.0",
            "epochs=100000",
        ]
    )  # fmt: skip


def step_table(args: Namespace, machine: Machine) -> Iterator[Section]:
    methods, modes = chosen_methods(args.methods, "naive", "pytorch"), chosen("--modes", args.modes, MODES)
    config = step_config(args)
    sketch(config)  # where the settings themselves are wrong, there is no table
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, generator=generator)
    labels = torch.randint(args.classes, (args.batch,), generator=generator).to(machine.device)
    batch = images.to(machine.device, memory_format=torch.channels_last), labels
    if "compiled" in args.modes:
        torch.compile(torch.relu)(batch[0])  # the compiler's own start is nobody's warm-up
    contenders: list[StepContender | PlainContender] = [
        (PlainContender if method == "pytorch" else StepContender)(config, method, mode, batch, machine, args)
        for mode, method in product(modes, methods)
    ]
    harness.contest(contenders, "dense", args, machine.wait)
    dense = {each.group: each.result.get("peak_bytes") for each in contenders if each.name == "dense"}
    for each in (each for each in contenders if "seconds" in each.result):
        each.result["images_per_second"] = args.batch / each.result["seconds"]["median"]
        if (peak := dense[each.group]) is not None and each.result["peak_bytes"] is not None:
            each.result["extra_bytes"] = each.result["peak_bytes"] - peak
            each.result["extra_in_weights"] = each.result["extra_bytes"] / (4 * each.result["weights"])
    columns: Columns = {
        "mode": lambda result: result["mode"],
        "method": lambda result: result["method"],
        **harness.time_columns("ms", 1e3, "dense"),
        "updating masks, ms": lambda result: (
            f"{harness.digits(1e3 * result['update_seconds']['median'])}, 1 step in {result['update_interval']:,}"
            if "update_seconds" in result
            else "–"
        ),
        "images/s": lambda result: f"{result['images_per_second']:,.0f}",
        "warm-up, s": lambda result: f"{result['warm_up_seconds']:.2f}",
        "exact zeros": harness.zeros_of,
    }
    alone = "each contender alone, compiling from empty caches"
    in_turn = "one contender after the other, using what is in caches by then (--warm-up: each alone, from empty ones)"
    notes = [
        f"n = {harness.rounds_done(contenders, args)} rounds of {args.steps} steps of every contender; "
        "ratios within a round.",
        "A step: forward, loss, backward, clipping to norm 3, SGD with momentum and weight decay, projection; "
        f"sparsity {SPARSITY} throughout, one resident random batch, channels_last.",
        "Updating masks: a step that does, called once in each round; all other times count it as often as it occurs.",
        f"Warm-up: until steps take their usual time, {alone if args.warm_up else in_turn}.",
    ]
    if machine.device.type == "cuda":
        columns["peak, MB"] = lambda result: (
            "–" if result["peak_bytes"] is None else f"{result['peak_bytes'] / 1e6:,.0f}"
        )
        columns["over dense, MB (in fp32 weights)"] = lambda result: (
            f"{result['extra_bytes'] / 1e6:,.1f} ({result['extra_in_weights']:.2f})" if "extra_bytes" in result else "–"
        )
        notes.append("Peak: allocated in a step of the contender alone; of a captured one also while it is captured.")
    notes += [f"{method}: {NOTES[method]}" for method in methods if method in NOTES]
    size = f"{args.image_size}×{args.image_size}"
    title = f"A training step: {args.model}, {size}, batch {args.batch}, {machine.precision}"
    yield Section(title, args, notes, contenders, columns)
