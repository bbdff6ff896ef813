"""What sparse training costs: whole steps, the projection alone, whole epochs, each beside what it is compared with.

    python scripts/benchmark.py step [--model resnet20] [--methods all|st3,rigl,naive] [--modes eager,compiled]
    python scripts/benchmark.py projection [--sizes 0.3e6,1e6,3e6,10e6,25.5e6,100e6]
    python scripts/benchmark.py epoch [--methods st3,rigl] [--root DIR]
    python scripts/benchmark.py all [--out DIR]

All contenders of a table run in one process and take turns: each round times every one of them, in an order that
rotates by round, so that whatever else the machine does hits all alike. Ratios are taken within a round. The step runs
at its steady state, the full sparsity; where a method updates its masks now and then, such steps are timed, too, and
counted as often as they occur. What a contender has computed is checked before its time is reported.
"""

import argparse
import gc
import itertools
import json
import math
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

import st3
from st3.build import (
    choose_execution,
    make_data,
    make_model,
    make_optimizer,
    make_plan,
    make_sparsifier,
    make_step,
    read_facts,
)
from st3.config import Config, MethodConfig, load_config, unknown_choice
from st3.errors import UserError
from st3.measure import SparsityMeter, layer_macs
from st3.models import build_model
from st3.sparsify import METHODS, Sparsifier
from st3.sparsify.flat_weights import FlatWeights
from st3.sparsify.methods.st3 import ST3
from st3.sparsify.methods.str_ import STR
from st3.sparsify.projections import sigma
from st3.sparsify.thresholds import quantile
from st3.training.distributed import SINGLE
from st3.training.loop import Step, fit, seed_everything
from st3.training.plan import Plan
from st3.training.precision import Precision, pick_device, pick_precision
from st3.training.profiling import peak_memory, reset_peak_memory
from st3.training.run_directory import SilentRecorder, environment
from st3.training.state import TrainingState

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
SPARSITY = 0.9
HORIZON = 10_000
"""Steps among which those that update masks are counted."""

SETTINGS = {"str": {"threshold_init": -2.0}, "probmask": {"until": "87.5%"}}
"""Where there are none, or the published ones start far from the full sparsity."""

NOTES = {
    "gmp": "its masks change only while the sparsity rises, by a quantile as hard_ste takes in each step; not timed.",
    "str": "its thresholds start at sigmoid(−2), the 90 % quantile of a new ResNet-20; the zeros are what comes of it.",
    "probmask": "timed while masks are drawn in every step; the zeros are those of the hard masks of one step more.",
    "set": "what it grows is 0 until it has a gradient, so that there may be more zeros than asked for.",
    "acdc": "in a compressed phase, where its masks stay; the steps between phases are not timed.",
    "naive": "ST-3 with an autograd function in every layer and a full sort read by the host.",
}
"""What is timed, where the name of a method does not say it."""

# Sizes where the command line is silent. "cpu" and "cuda" are for tables, "quick" shows that everything works.
DEFAULTS = {
    "quick": {
        "model": "resnet20", "batch": 8, "image_size": 16, "classes": 10,
        "methods": {"step": "st3,st3_sigma,rigl,naive", "epoch": "st3"}, "modes": "eager,captured", "rounds": 2,
        "steps": 1, "sizes": "2e4,2e5", "train_images": 64, "val_images": 16, "test_images": 32,
    },
    "cpu": {
        "model": "resnet20", "batch": 128, "image_size": 32, "classes": 10,
        "methods": {"step": "all", "epoch": "st3"}, "modes": "eager,captured",
        "rounds": {"step": 30, "projection": 7, "epoch": 3}, "steps": 5, "sizes": "0.3e6,1e6,3e6,10e6,25.5e6",
        "train_images": 5_760, "val_images": 640, "test_images": 1_280,
    },
    "cuda": {
        "model": "resnet20", "batch": 128, "image_size": 32, "classes": 10,
        "methods": {"step": "all", "epoch": "st3"}, "modes": "eager,compiled,captured,compiled+captured",
        "rounds": {"step": 15, "projection": 15, "epoch": 10}, "steps": 10,
        "sizes": "0.3e6,1e6,3e6,10e6,25.5e6,100e6", "train_images": 50_000, "val_images": 5_000, "test_images": 10_000,
    },
}  # fmt: skip


# Timing and reporting -------------------------------------------------------------------------------------------------


@dataclass
class Section:
    """One table with everything that it was made from."""

    title: str
    settings: dict
    notes: list[str]
    results: list[dict]
    """One for each contender, raw numbers included."""
    columns: dict[str, Callable[[dict], str]]
    """Heading to what a result says below it."""

    def markdown(self) -> str:
        rows = [[cell(result) for cell in self.columns.values()] for result in self.results if "reason" not in result]
        lines = [f"### {self.title}", "", *(_row(cells) for cells in [[*self.columns], ["---"] * len(self.columns)])]
        lines += [*map(_row, rows), ""]
        reasons = dict.fromkeys((result["mode"], result["reason"]) for result in self.results if "reason" in result)
        for mode, reason in reasons:
            methods = [r["method"] for r in self.results if (r.get("mode"), r.get("reason")) == (mode, reason)]
            lines.append(f"- {mode}: not available for {', '.join(methods)}: {reason}")
        lines += [f"- {note}" for note in self.notes]
        return "\n".join(lines)

    def plain(self) -> dict:
        return {"title": self.title, "settings": self.settings, "notes": self.notes, "results": self.results}


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def take_turns(
    contenders: dict[str, Callable[[], object]], rounds: int, calls: dict[str, int], wait: Callable[[], None]
) -> dict[str, list[float]]:
    """Seconds per call in each round, by contender; in a round each is called `calls` times in a row."""
    names, seconds = list(contenders), {name: [] for name in contenders}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            wait()
            begin = time.perf_counter()
            for _ in range(calls[name]):
                contenders[name]()
            wait()
            seconds[name].append((time.perf_counter() - begin) / calls[name])
    return seconds


def spread(values: Sequence[float]) -> dict:
    """Median, quartiles and extremes of the rounds, and the rounds themselves."""
    low, first, middle, third, high = np.percentile(values, [0, 25, 50, 75, 100]).tolist()
    return {
        "n": len(values), "median": middle, "q1": first, "q3": third, "min": low, "max": high, "rounds": list(values),
    }  # fmt: skip


def ratios(values: Sequence[float], reference: Sequence[float]) -> dict:
    """Spread of the quotients within a round."""
    return spread([a / b for a, b in zip(values, reference, strict=True)])


def times(name: str) -> dict[str, Callable[[dict], str]]:
    """Three columns for the seconds in result[name], in milliseconds."""

    def between(low: str, high: str) -> Callable[[dict], str]:
        return lambda result: f"{_digits(1e3 * result[name][low])}–{_digits(1e3 * result[name][high])}"

    return {
        "ms, median": lambda result: _digits(1e3 * result[name]["median"]),
        "middle half": between("q1", "q3"),
        "min–max": between("min", "max"),
    }


def ratio(result: dict, name: str) -> str:
    if name not in result:
        return "–"
    middle, first, third = (f"{v:.3f}" if v < 10 else f"{v:.1f}" for v in map(result[name].get, ("median", "q1", "q3")))
    return f"{middle} ({first}–{third})"


def _digits(value: float) -> str:
    return f"{value:.{max(0, 2 - math.floor(math.log10(value)))}f}" if value > 0 else "0"


# Runs as st3-train makes them -----------------------------------------------------------------------------------------


@dataclass
class Training:
    """A run, up to the point where its loop would start."""

    plan: Plan
    state: TrainingState
    step: Step
    macs: dict[str, int]
    execution: str


def load(*overrides: str) -> Config:
    """The configuration that this command line gives."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return load_config(compose("config", list(overrides)))


def method_names(text: str, peers: Sequence[str] = ()) -> list[str]:
    """What the command line asks for, after `dense`. "all" is every method and the `peers`, which are none of them.

    Raises `UserError` for what is neither.
    """
    known = [*METHODS, *peers]
    names = known if text == "all" else text.split(",")
    for name in names:
        if name not in known:
            raise UserError(unknown_choice("--methods", name, [*known, "all"]))
    return list(dict.fromkeys(["dense", *names]))


def make_training(config: Config, method: str, precision: Precision) -> Training:
    """What `st3.run` makes of `config` and `method`. "dense" has nothing attached to its optimizer."""
    config = replace(config, method=MethodConfig(name=method, **SETTINGS.get(method, {})))
    facts = read_facts(config)
    plan = make_plan(config, facts)
    size = config.dataset.image_size
    with torch.device("meta"):
        macs = layer_macs(make_model(config, facts), (config.dataset.channels, size, size))
    seed_everything(config.seed, 0)
    model = make_model(config, facts).to(precision.device, memory_format=torch.channels_last)
    optimizer = make_optimizer(config, model)
    sparsifier = make_sparsifier(config, plan, model, macs)
    if method != "dense":
        sparsifier.attach(optimizer)
    execution = choose_execution(config, plan, precision, SINGLE, sum(macs.values()), sparsifier.steps_differ)
    state = TrainingState(model, optimizer, sparsifier, precision.scaler())
    step = make_step(config, state, plan, precision, execution, SINGLE)
    parts = {"compiled": execution.compile, "captured": execution.capture}
    return Training(plan, state, step, macs, "+".join(part for part, on in parts.items() if on) or "eager")


def update_steps(sparsifier: Sparsifier) -> list[int]:
    """Those of `HORIZON` steps in which the masks are updated; none where that is so in every step."""
    if sparsifier.steps_differ:
        return []
    now, found = sparsifier.step, []
    for step in range(HORIZON, 2 * HORIZON):
        sparsifier.step = step
        if sparsifier.changes:
            found.append(step)
    sparsifier.step = now
    return found


def ordinary_step(training: Training, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A step that updates no masks, if there are such. Returns the loss."""
    sparsifier = training.state.sparsifier
    if sparsifier.changes and not sparsifier.steps_differ:
        sparsifier.step += 1
    return training.step([batch], training.plan.lr)


def final_step(training: Training, batch: tuple[Tensor, Tensor]) -> Tensor:
    """A step after which zeros can be counted: what has been grown moves, masks that are drawn become hard."""
    sparsifier = training.state.sparsifier
    if sparsifier.steps_differ:
        sparsifier.step = sparsifier.method.until - 1
    return ordinary_step(training, batch)


def check_weights(name: str, training: Training) -> dict:
    """Counts of the exact zeros in the network.

    Raises `UserError` where they are not those that its method asks for.
    """
    state, sparsifier = training.state, training.state.sparsifier
    method, raw = sparsifier.method, sparsifier.raw_weights()
    if not sparsifier.sparsity:
        return {"zeros": int(sparsifier.zeros().sum()), "weights": sparsifier.prunable}
    sparse = [state.model.get_submodule(layer).weight.detach() for layer in raw]
    if masks := sparsifier.state_dict()["method"].get("masks"):
        return check_masks(name, sparse, raw.values(), masks)
    if isinstance(method, STR):
        return check_thresholds(name, sparse, raw.values(), sparsifier.thresholds())
    by_sigma = isinstance(method, ST3) and method.layer_sigma
    return check_zeros(name, sparse, raw.values(), [sigma(w.shape) if by_sigma else 1.0 for w in sparse])


def check_zeros(name: str, sparse: Sequence[Tensor], raw: Sequence[Tensor], scales: Sequence[float]) -> dict:
    """Counts of the exact zeros in `sparse` and of those that the order of `raw` over `scales` asks for.

    Those are the weights up to rank floor((N − 1)·s) and what ties with it. Rounding may move one more.

    Raises `UserError` where they differ.
    """
    found = sum(int((w == 0).sum()) for w in sparse)
    magnitudes = torch.cat([w.detach().abs().flatten() * (1 / s) for w, s in zip(raw, scales, strict=True)])
    ordered = magnitudes.sort().values
    wanted = int((ordered <= ordered[math.floor((ordered.numel() - 1) * SPARSITY)]).sum())
    if abs(found - wanted) > 1:
        raise UserError(f"{name} leaves {found:,} exact zeros of {ordered.numel():,}, not {wanted:,}: nothing reported")
    return {"zeros": found, "zeros_expected": wanted, "weights": ordered.numel()}


def check_masks(name: str, sparse: Sequence[Tensor], raw: Sequence[Tensor], masks: Sequence[Tensor]) -> dict:
    """Counts of the exact zeros in `sparse` and of those that the sparsity asks for.

    `masks` must have so many zeros, but for magnitudes that tied, and `sparse` must be `raw` times them. What is kept
    may be 0 as well: a weight that was grown and has had no gradient yet.

    Raises `UserError` where that is not so.
    """
    total, masked = sum(m.numel() for m in masks), sum(int((m == 0).sum()) for m in masks)
    wanted = math.floor((total - 1) * SPARSITY) + 1
    if abs(masked - wanted) > max(1, 1e-6 * total):
        raise UserError(f"{name} masks {masked:,} weights of {total:,}, not {wanted:,}: nothing reported")
    if not all(torch.equal(s, w * m) for s, w, m in zip(sparse, raw, masks, strict=True)):
        raise UserError(f"{name} trains other weights than its masks leave: nothing reported")
    return {"zeros": sum(int((s == 0).sum()) for s in sparse), "zeros_expected": wanted, "weights": total}


def check_thresholds(name: str, sparse: Sequence[Tensor], raw: Sequence[Tensor], thresholds: Tensor) -> dict:
    """Counts of the exact zeros in `sparse`, however many these `thresholds` [layers] make of `raw`.

    Raises `UserError` where there are others.
    """
    for weight, before, threshold in zip(sparse, raw, thresholds, strict=True):
        if not torch.equal(weight == 0, before.abs() <= threshold):
            raise UserError(f"{name} leaves other exact zeros than its thresholds say: nothing reported")
    return {"zeros": sum(int((w == 0).sum()) for w in sparse), "weights": sum(w.numel() for w in sparse)}


# ST-3 as research code writes it: the peer ----------------------------------------------------------------------------


def shrink_and_rescale(weight: Tensor, tau: Tensor) -> Tensor:
    """The forward weight for the raw `weight` [out, …] and threshold `tau` (0-d), equation by equation."""
    mask = (weight.abs() > tau).to(weight.dtype)
    shrunk = (weight - torch.sign(weight) * tau) * mask
    dims = tuple(range(1, weight.ndim))
    kept = (weight.abs() * mask).mean(dims, keepdim=True)
    rho = (kept + 1e-6) / (weight.abs().mean(dims, keepdim=True) + 1e-6)
    return shrunk * (1.01 / (rho + 0.01))


class StraightThrough(torch.autograd.Function):
    """`shrink_and_rescale` forward, the identity backward."""

    @staticmethod
    def forward(ctx, weight: Tensor, tau: Tensor) -> Tensor:
        return shrink_and_rescale(weight, tau)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class NaiveLayer(nn.Module):
    """Stands in for a Conv2d or Linear `layer`, whose parameters are the raw ones."""

    def __init__(self, layer: nn.Conv2d | nn.Linear, tau: Tensor):
        super().__init__()
        self.layer, self.tau = layer, tau

    def forward(self, x: Tensor) -> Tensor:
        weight = StraightThrough.apply(self.layer.weight, self.tau)
        if isinstance(self.layer, nn.Linear):
            return F.linear(x, weight, self.layer.bias)
        return self.layer._conv_forward(x, weight, self.layer.bias)


class Naive:
    """ST-3 with wrapped layers and a threshold from sorting all magnitudes, which the host waits for.

    Computes the same training as `method=st3`. A threshold of 0 changes no weight, so the first step is dense.
    """

    def __init__(self, model: nn.Module, sparsity: float):
        layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
        self.sparsity, self.weights = sparsity, [layer.weight for layer in layers.values()]
        self.tau = torch.zeros((), dtype=self.weights[0].dtype, device=self.weights[0].device)
        for name, layer in layers.items():
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, NaiveLayer(layer, self.tau))

    @torch.no_grad()
    def update(self) -> None:
        """The threshold for the next forward pass; after every optimizer step."""
        ordered = torch.cat([w.abs().flatten() for w in self.weights]).sort().values
        rank = (ordered.numel() - 1) * self.sparsity
        below = math.floor(rank)
        low, high = ordered[below].item(), ordered[min(below + 1, ordered.numel() - 1)].item()
        self.tau.fill_(low + (high - low) * (rank - below))

    @torch.no_grad()
    def sparse(self) -> list[Tensor]:
        """The forward weights."""
        return [shrink_and_rescale(w, self.tau) for w in self.weights]


# A training step ------------------------------------------------------------------------------------------------------


class StepContender:
    """One way to do a whole training step on `batch`."""

    def __init__(self, config: Config, method: str, mode: str, batch: tuple[Tensor, Tensor], precision: Precision):
        if method == "naive" and "captured" in mode:
            raise UserError("its threshold waits for the device in every step, which a CUDA graph cannot hold")
        self.name, self._batch, self._precision = f"{method}, {mode}", batch, precision
        parts = mode.split("+")
        self.captured = "captured" in parts
        config = replace(
            config, compile="on" if "compiled" in parts else "off", capture="on" if self.captured else "off"
        )
        self.training = make_training(config, "dense" if method == "naive" else method, precision)
        # The wrapped layers keep their parameters, which is all that the optimizer knows.
        self._naive = Naive(self.training.state.model, SPARSITY) if method == "naive" else None
        self.interval: int | None = None
        """Steps from one update of masks to the next; None where there are no such steps, or no others."""

    def __call__(self) -> None:
        """A step like nearly all."""
        ordinary_step(self.training, self._batch)
        if self._naive:
            self._naive.update()

    def update(self) -> None:
        """A step that updates masks, where some do."""
        self.training.state.sparsifier.step = next(self._updates)
        self.training.step([self._batch], self.training.plan.lr)

    def warm_up(self) -> dict:
        """Step until steps take their usual time. Seconds until then, and bytes at the peak of one such step."""
        device, begin = self._precision.device, time.perf_counter()
        while not self.training.step.warm:
            reset_peak_memory(device)  # so that the last one counts, where a captured step claims its memory
            self()
        self._precision.wait()
        seconds = time.perf_counter() - begin
        if not self.captured:  # without what trying algorithms took
            reset_peak_memory(device)
        for _ in range(2):  # the first projection comes after the first step
            self()
        if steps := update_steps(self.training.state.sparsifier):
            self.interval, self._updates = HORIZON // len(steps), itertools.cycle(steps)
            self.update()
        self._precision.wait()
        return {"warm_up_seconds": seconds, "peak_bytes": peak_memory(device) if device.type == "cuda" else None}

    def check(self) -> dict:
        """What it has computed, as numbers. Raises `UserError` where that is wrong."""
        loss = float(final_step(self.training, self._batch))
        if not math.isfinite(loss):
            raise UserError(f"{self.name} ends with the loss {loss}: nothing reported")
        if not self._naive:
            return {"loss": loss, **check_weights(self.name, self.training)}
        self._naive.update()
        weights = self._naive.weights
        return {"loss": loss, **check_zeros(self.name, self._naive.sparse(), weights, [1.0] * len(weights))}


def step_section(args: argparse.Namespace, precision: Precision) -> Section:
    """Whole steps of dense and sparse training on one resident batch."""
    model = "model" if (CONFIGS / "model" / f"{args.model}.yaml").exists() else "model.name"
    config = load(
        f"{model}={args.model}", "dataset=fake", f"dataset.classes={args.classes}",
        f"dataset.image_size={args.image_size}", f"dataset.train_images={args.batch}", f"batch_size={args.batch}",
        f"sparsity={SPARSITY}", "schedule=constant", "lr_schedule=constant", "optimizer.lr=0.01", "clip_norm=3.0",
        "epochs=1000000",  # of one step: more than are timed
        f"precision={precision.name}", f"device={precision.device}",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(args.batch, 3, args.image_size, args.image_size, generator=generator)
    labels = torch.randint(args.classes, (args.batch,), generator=generator).to(precision.device)
    batch = images.to(precision.device, memory_format=torch.channels_last), labels
    if "compiled" in args.modes:
        torch.compile(torch.relu)(batch[0])  # the compiler's own start is nobody's warm-up
    methods = method_names(args.methods, peers=["naive"])
    makers, results = {}, {}
    for mode in args.modes.split(","):
        for method in methods:
            make = partial(StepContender, config, method, mode, batch, precision)
            name = f"{method}, {mode}"
            result = results[name] = {"contender": name, "method": method, "mode": mode}
            try:
                result |= warm_up_alone(make, precision.device, "compiled" in mode)
                makers[name] = make
            except (UserError, RuntimeError) as error:  # compilers and capture raise many kinds of the latter
                if mode == "eager":
                    raise
                result["reason"] = str(error).partition("\n")[0]
    contenders = {name: make() for name, make in makers.items()}
    timed, calls = {}, {}
    for name, contender in contenders.items():
        contender.warm_up()
        timed[name], calls[name] = contender, args.steps
        if contender.interval:
            timed[f"{name}, update"], calls[f"{name}, update"] = contender.update, 1
    seconds = take_turns(timed, args.rounds, calls, precision.wait)
    for name, contender in contenders.items():
        result, dense = results[name], f"dense, {results[name]['mode']}"
        if contender.interval:
            ordinary, updating = seconds[name], seconds[f"{name}, update"]
            result |= {"ordinary_seconds": spread(ordinary), "update_seconds": spread(updating)}
            result["update_interval"] = contender.interval
            seconds[name] = [a + (b - a) / contender.interval for a, b in zip(ordinary, updating, strict=True)]
        result |= {"seconds": spread(seconds[name]), **contender.check()}
        result["images_per_second"] = args.batch / result["seconds"]["median"]
        if dense in seconds:
            result["to_dense"] = ratios(seconds[name], seconds[dense])
            if result["peak_bytes"] is not None:
                result["extra_bytes"] = result["peak_bytes"] - results[dense]["peak_bytes"]
                result["extra_in_weights"] = result["extra_bytes"] / (4 * result["weights"])
    columns = {
        "mode": lambda result: result["mode"],
        "method": lambda result: result["method"],
        **times("seconds"),
        "× dense (middle half)": lambda result: ratio(result, "to_dense"),
        "updating masks, ms": lambda result: (
            f"{_digits(1e3 * result['update_seconds']['median'])}, 1 step in {result['update_interval']:,}"
            if "update_seconds" in result
            else "–"
        ),
        "images/s": lambda result: f"{result['images_per_second']:,.0f}",
        "warm-up, s": lambda result: f"{result['warm_up_seconds']:.2f}",
        "exact zeros": lambda result: f"{result['zeros']:,} of {result['weights']:,}",
    }
    notes = [
        f"n = {args.rounds} rounds of {args.steps} steps of every contender; ratios within a round.",
        "A step: forward, loss, backward, clipping to norm 3, SGD with momentum and weight decay, projection; "
        f"sparsity {SPARSITY} throughout, one resident random batch, channels_last.",
        "Updating masks: a step that does, called once in each round; all other times count it as often as it occurs.",
        "Warm-up: each contender alone, until its steps take their usual time; compiling from empty caches.",
    ]
    if precision.device.type == "cuda":
        columns["peak, MB"] = lambda result: f"{result['peak_bytes'] / 1e6:,.0f}"
        columns["over dense, MB (in fp32 weights)"] = lambda result: (
            f"{result['extra_bytes'] / 1e6:,.1f} ({result['extra_in_weights']:.2f})" if "extra_bytes" in result else "–"
        )
        notes.append("Peak: allocated in a step of the contender alone; of a captured one also while it is captured.")
    notes += [f"{method}: {NOTES[method]}" for method in methods if method in NOTES]
    settings = _settings(args, "model batch image_size classes rounds steps", precision)
    title = f"A training step: {args.model}, {args.image_size}×{args.image_size}, batch {args.batch}, {precision.name}"
    return Section(title, settings, notes, list(results.values()), columns)


def warm_up_alone(make: Callable[[], StepContender], device: torch.device, compiled: bool) -> dict:
    """`StepContender.warm_up` where nothing is left of the contenders before."""
    torch.compiler.reset()
    gc.collect()
    caches = nullcontext()
    if compiled:
        from torch._inductor.utils import fresh_cache

        caches = fresh_cache()
    on_cuda = device.type == "cuda"
    if on_cuda:
        torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated(device) if on_cuda else 0
    contender = make()
    with caches:
        measured = contender.warm_up()
    if on_cuda:
        measured["peak_bytes"] -= before
    return measured


# The projection -------------------------------------------------------------------------------------------------------


def layer_shapes(size: float) -> list[tuple[int, ...]]:
    """ResNet-50's layers for 25.5 million weights, else 20 equal 3×3 convolutions of about `size` weights."""
    if round(size, -5) == 25.5e6:
        with torch.device("meta"):
            model = build_model("resnet50", classes=1000)
        return [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    channels = round(math.sqrt(size / (20 * 9)))
    return [(channels, channels, 3, 3)] * 20


def random_weights(shapes: Sequence[tuple[int, ...]], device: torch.device) -> list[Tensor]:
    """As they are after initialization, in the layout of training."""
    generator = torch.Generator().manual_seed(0)
    weights = []
    for shape in shapes:
        weight = torch.randn(shape, generator=generator) * math.sqrt(2 / math.prod(shape[1:]))
        channels_last = {"memory_format": torch.channels_last} if len(shape) == 4 else {}
        weights.append(weight.to(device).contiguous(**channels_last))
    return weights


class Quantile:
    """The threshold of `flat` [N] in the ways that PyTorch and NumPy offer; each returns it 0-d."""

    def __init__(self, flat: Tensor):
        rank = (flat.numel() - 1) * SPARSITY
        self.flat, self.below = flat, math.floor(rank)
        self.above, self.fraction = min(self.below + 1, flat.numel() - 1), rank - self.below

    def between(self, low: Tensor, high: Tensor) -> Tensor:
        tau = (low.double() + (high.double() - low.double()) * self.fraction).to(low.dtype)
        return torch.where(tau < high, tau, low)  # rounding may lift it onto its neighbour

    def sort(self) -> Tensor:
        ordered = self.flat.abs().sort().values
        return self.between(ordered[self.below], ordered[self.above])

    def topk(self) -> Tensor:
        largest = self.flat.abs().topk(self.flat.numel() - self.below).values
        return self.between(largest[-1], largest[self.below - self.above - 1])

    def kthvalue(self) -> Tensor:
        magnitudes = self.flat.abs()
        return self.between(*(magnitudes.kthvalue(rank + 1).values for rank in (self.below, self.above)))

    def partition(self) -> Tensor:
        pair = np.partition(self.flat.abs().numpy(), (self.below, self.above))[[self.below, self.above]]
        return self.between(*torch.from_numpy(pair))

    def check(self, name: str, tau: Tensor) -> None:
        """Raises `UserError` for a threshold that separates other weights or is not the interpolated one."""
        ordered = np.sort(self.flat.abs().cpu().numpy())
        low, high = ordered[self.below].item(), ordered[self.above].item()
        wanted, found = low + (high - low) * self.fraction, tau.item()
        separates = low <= found < high or low == found == high
        if not (separates and math.isclose(wanted, found, rel_tol=2**-22)):
            raise UserError(f"{name} finds the threshold {found!r} between {low!r} and {high!r}, not {wanted!r}")


def projection_section(args: argparse.Namespace, precision: Precision) -> Section:
    """The threshold alone, and threshold and projection of all layers, beside copying the same bytes."""
    results = []
    for size in map(float, args.sizes.split(",")):
        weights = random_weights(layer_shapes(size), precision.device)
        with torch.no_grad():
            results += time_thresholds(weights, args.rounds, precision)
            results += time_projections(weights, args.rounds, precision)
    columns = {
        "weights": lambda result: f"{result['weights']:,}",
        "task": lambda result: result["task"],
        "contender": lambda result: result["contender"],
        **times("seconds"),
        "× copy (middle half)": lambda result: ratio(result, "to_copy"),
    }
    notes = [
        f"n = {args.rounds} rounds; sparsity {SPARSITY}, float32, convolutions in channels_last; 25.5 M weights are "
        "those of ResNet-50, others 20 equal 3×3 convolutions.",
        "copy: the same bytes read and written once, which no method can avoid.",
        "Every threshold lies between the order statistics that sorting gives; zeros are exact, values agree to 1e-4.",
    ]
    if precision.device.type == "cuda":
        notes += [
            "replayed: the same work as one CUDA graph, without the time to launch it.",
            "st3 finds threshold and projection together; its threshold alone is not timed.",
        ]
    settings = _settings(args, "sizes rounds", precision)
    return Section("Threshold and projection", settings, notes, results, columns)


def time_thresholds(weights: Sequence[Tensor], rounds: int, precision: Precision) -> list[dict]:
    """Results for the threshold of all magnitudes together."""
    raw, on_cuda = FlatWeights.copy_of(weights), precision.device.type == "cuda"
    out, ways = torch.empty_like(raw.flat), Quantile(raw.flat)
    sparsity = torch.tensor(SPARSITY, dtype=torch.float64, device=precision.device)
    contenders = {
        "st3's plain quantile" if on_cuda else "st3": lambda: quantile(raw.flat.abs(), sparsity),
        "sort": ways.sort,
        "topk": ways.topk,
    }
    if not on_cuda:
        contenders["np.partition"] = ways.partition
    if not on_cuda or raw.flat.numel() <= 3.1e6:  # takes longer than all others together beyond
        contenders["torch.kthvalue"] = ways.kthvalue
    for name, contender in contenders.items():
        ways.check(name, contender())
    contenders["copy"] = lambda: out.copy_(raw.flat)
    return _time_all("threshold", contenders, raw.flat.numel(), rounds, precision)


def time_projections(weights: Sequence[Tensor], rounds: int, precision: Precision) -> list[dict]:
    """Results for the threshold and the sparse weights of all layers."""
    on_cuda = precision.device.type == "cuda"
    sparsity = torch.tensor(SPARSITY, dtype=torch.float64, device=precision.device)
    contenders, outs = {}, {}

    def enter(name: str, method: str, project: Callable) -> None:
        # Each its own raw weights: tables are made once for these and where they are projected to.
        raw, outs[name] = FlatWeights.copy_of(weights), (method, [torch.empty_like(w) for w in weights])
        contenders[name] = partial(project, raw, sparsity, outs[name][1])

    for method in ("st3", "st3_sigma"):
        enter(method, method, METHODS[method].project)
        if on_cuda:
            enter(f"{method}, plain functions", method, METHODS[method]._project)
    enter("naive", "st3", _project_naively)
    for name, contender in contenders.items():
        for _ in range(2):  # the first time the fused kernels leave the result of the plain functions
            contender()
        method, out = outs[name]
        _check_projection(name, method, weights, out)
    if on_cuda:
        for name in ("st3", "st3_sigma"):
            contenders[f"{name}, replayed"] = _captured(contenders[name])
    raw, out = FlatWeights.copy_of(weights), [torch.empty_like(w) for w in weights]
    contenders["copy"] = lambda: torch._foreach_copy_(out, raw.layers)
    return _time_all("projection", contenders, raw.flat.numel(), rounds, precision)


def _project_naively(raw: FlatWeights, _: Tensor, out: Sequence[Tensor]) -> None:
    tau = Quantile(torch.cat([w.flatten() for w in raw.layers])).sort()
    for weight, target in zip(raw.layers, out, strict=True):
        target.copy_(shrink_and_rescale(weight, tau))


def _check_projection(name: str, method: str, raw: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    scales = [sigma(w.shape) if method == "st3_sigma" else 1.0 for w in raw]
    check_zeros(name, out, raw, scales)
    tau = Quantile(torch.cat([w.flatten() * (1 / s) for w, s in zip(raw, scales, strict=True)])).sort()
    differing = 0
    for weight, target, scale in zip(raw, out, scales, strict=True):
        expected = shrink_and_rescale(weight.double(), tau.double() * scale)
        close = torch.isclose(target.double(), expected, rtol=1e-4, atol=1e-6)
        differing += int((~close.flatten(1).all(1)).sum())
    if differing > 1:  # rounding may move one weight across the threshold, which rescales its output channel
        raise UserError(f"{name} projects {differing} channels to other weights than the equations say")


def _captured(work: Callable[[], object]) -> Callable[[], object]:
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def _time_all(
    task: str, contenders: dict[str, Callable[[], object]], weights: int, rounds: int, precision: Precision
) -> list[dict]:
    calls = {}
    for name, contender in contenders.items():
        contender()
        once = take_turns({name: contender}, 1, {name: 1}, precision.wait)[name][0]
        calls[name] = min(1000, max(1, round(0.02 / once)))
    seconds = take_turns(contenders, rounds, calls, precision.wait)
    return [
        {
            "task": task, "contender": name, "weights": weights, "calls": calls[name], "seconds": spread(values),
            "to_copy": ratios(values, seconds["copy"]),
        }
        for name, values in seconds.items()
    ]  # fmt: skip


# An epoch -------------------------------------------------------------------------------------------------------------


def epoch_section(args: argparse.Namespace, precision: Precision) -> Section:
    """Whole epochs of the CIFAR-10 recipe: augmentation, steps, rows of metrics, evaluation."""
    if args.root:
        data = ["dataset=cifar10_folder", f"dataset.root={args.root}"]
        data += [f"dataset.{name}=null" for name in ("train_images", "test_images", "classes")]
    else:
        sizes = {name: getattr(args, name) for name in ("train_images", "val_images", "test_images")}
        data = ["dataset=fake", "dataset.augment=crop_flip", *(f"dataset.{n}={v}" for n, v in sizes.items())]
    quick = [f"batch_size={args.batch}"] if args.quick else []
    config = load(
        "recipe=cifar10_resnet20", *data, *quick, "schedule=constant", "schedule.start=null", "schedule.end=null",
        f"sparsity={SPARSITY}", f"precision={precision.name}", f"device={precision.device}",
    )  # fmt: skip
    images = make_data(config, precision.device)
    trainings = {name: make_training(config, name, precision) for name in method_names(args.methods)}
    data_seconds = {name: [] for name in trainings}

    def one_epoch(name: str) -> None:
        training = trainings[name]
        state = training.state
        meter, before = SparsityMeter(state.sparsifier, training.macs), state.data_seconds
        until = replace(training.plan, epochs=state.epoch + 1)
        fit(state, images, until, precision, training.step, SilentRecorder(), meter)
        data_seconds[name].append(state.data_seconds - before)

    contenders = {name: partial(one_epoch, name) for name in trainings}
    first = take_turns(contenders, 1, dict.fromkeys(contenders, 1), precision.wait)
    for shares in data_seconds.values():
        shares.clear()
    seconds = take_turns(contenders, args.rounds, dict.fromkeys(contenders, 1), precision.wait)
    results = []
    for name, training in trainings.items():
        plan = training.plan
        result = {"contender": name, "execution": training.execution, "seconds": spread(seconds[name])}
        result["images_per_second"] = spread([plan.steps_per_epoch * plan.batch_size / s for s in seconds[name]])
        result["data_share"] = ratios(data_seconds[name], seconds[name])
        result |= {"to_dense": ratios(seconds[name], seconds["dense"]), "first_epoch_seconds": first[name][0]}
        result |= {"warm_up_seconds": training.state.warmup_seconds, "scores": training.state.scores}
        final_step(training, next(iter(images.train.epoch(0))))
        results.append(result | check_weights(name, training))
    columns = {
        "method": lambda result: result["contender"],
        "steps": lambda result: result["execution"],
        "s/epoch, median": lambda result: _digits(result["seconds"]["median"]),
        "middle half": lambda result: "–".join(_digits(result["seconds"][q]) for q in ("q1", "q3")),
        "min–max": lambda result: "–".join(_digits(result["seconds"][q]) for q in ("min", "max")),
        "× dense (middle half)": lambda result: ratio(result, "to_dense"),
        "images/s": lambda result: f"{result['images_per_second']['median']:,.0f}",
        "waiting for data": lambda result: f"{result['data_share']['median']:.1%}",
        "exact zeros": lambda result: f"{result['zeros']:,} of {result['weights']:,}",
    }
    counts = [getattr(getattr(images, split), "num_images", 0) for split in ("train", "val", "test")]
    notes = [
        f"n = {args.rounds} epochs of each, alternating, after a first one that is not counted.",
        f"{counts[0]:,} training, {counts[1]:,} validation and {counts[2]:,} test images"
        f"{'' if args.root else ', random'}; sparsity {SPARSITY} throughout.",
        "An epoch: shuffling, crop and flip, all steps, rows of metrics, evaluation of validation and test images, "
        "without writing files; images/s counts the training images only.",
        "Compiling and capturing as the command decides for a run of full length.",
    ]
    for name, training in trainings.items():
        if steps := update_steps(training.state.sparsifier):
            every, length = HORIZON // len(steps), training.plan.steps_per_epoch
            notes.append(f"{name}: updates its masks every {every:,} steps; an epoch has {length:,}.")
    notes += [f"{method}: {NOTES[method]}" for method in trainings if method in NOTES]
    settings = _settings(args, "rounds", precision)
    settings |= dict(zip(("train_images", "val_images", "test_images"), counts, strict=True), random=not args.root)
    title = f"An epoch of recipe=cifar10_resnet20, batch {config.batch_size}, {precision.name}"
    return Section(title, settings, notes, results, columns)


# Command line ---------------------------------------------------------------------------------------------------------

SECTIONS = {"step": step_section, "projection": projection_section, "epoch": epoch_section}


def _settings(args: argparse.Namespace, names: str, precision: Precision) -> dict:
    settings = {name: getattr(args, name) for name in names.split()}
    return {**settings, "precision": precision.name, "sparsity": SPARSITY}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    common.add_argument("--precision", default="auto", help="auto, fp32, bf16 or fp16")
    common.add_argument("--threads", type=int, help="CPU threads")
    common.add_argument("--rounds", type=int, help="how often every contender is timed")
    common.add_argument("--out", type=Path, help="folder for benchmark.json and benchmark.md")
    common.add_argument("--quick", action="store_true", help="tiny sizes: shows that it works")
    step = commands.add_parser("step", parents=[common], help="whole training steps")
    step.add_argument("--model", help="a model of configs/model/, or a name that model.name takes")
    step.add_argument("--methods", help="besides dense: all, or names of methods and naive, ST-3 with wrapped layers")
    step.add_argument("--modes", help="eager, compiled, captured, compiled+captured")
    for name in ("batch", "image-size", "classes", "steps"):
        step.add_argument(f"--{name}", type=int)
    projection = commands.add_parser("projection", parents=[common], help="threshold and projection alone")
    projection.add_argument("--sizes", help="numbers of weights")
    epoch = commands.add_parser("epoch", parents=[common], help="whole epochs of the CIFAR-10 recipe")
    epoch.add_argument("--methods", help="besides dense: all, or names of methods")
    everything = commands.add_parser("all", parents=[common], help="all of them, at the sizes for this device")
    for each in (epoch, everything):
        each.add_argument("--root", type=Path, help="CIFAR-10 as image files, root/train/CLASS/FILE; default: random")
    return parser


def _tasks(args: argparse.Namespace, device: torch.device) -> list[tuple[str, argparse.Namespace]]:
    """Sections to make, each with all its settings."""
    defaults = DEFAULTS["quick" if args.quick else device.type]

    def settled(section: str, **given) -> tuple[str, argparse.Namespace]:
        values = {"root": None, **defaults, **given}
        values |= {name: value for name, value in vars(args).items() if value is not None}
        values = {name: value.get(section) if isinstance(value, dict) else value for name, value in values.items()}
        return section, argparse.Namespace(**values)

    if args.command != "all":
        return [settled(args.command)]
    steps = [settled("step")]
    if device.type == "cuda" and not args.quick:
        large = {
            "model": "resnet50",
            "batch": 256,
            "image_size": 224,
            "classes": 1000,
            "modes": "eager,compiled",
            "methods": "st3,st3_sigma,naive",
        }
        steps.insert(0, settled("step", **large))
    return [*steps, settled("projection"), settled("epoch")]


def _environment(device: torch.device) -> dict:
    try:
        import triton
    except ImportError:
        triton = None
    facts = {"date": datetime.now(UTC).isoformat(timespec="seconds"), **environment(device, st3.__version__)}
    facts |= {"triton": triton and triton.__version__, "processor": _processor(), "cpu_cores": os.cpu_count()}
    return facts | {"command": shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])}


def _processor() -> str:
    with suppress(OSError):  # what Linux says
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _heading(facts: dict) -> str:
    commit = facts["git"]["commit"][:7] if facts["git"] else "unknown"
    if facts["git"] and facts["git"]["changed_files"]:
        commit += f" and {facts['git']['changed_files']} changed files"
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "triton", "python", "cuda") if facts[name])
    return (
        f"`{facts['command']}`\n\n{facts['device']}; {facts['processor']}, {facts['cpu_threads']} threads on "
        f"{facts['cpu_cores']} cores; {versions}; commit {commit}; {facts['date']}"
    )


def main() -> None:
    args = _parser().parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    # What falls back to a slower way must not be timed under the name of the fast one.
    for message in ("st3's fused projection", "the step cannot be captured"):
        warnings.filterwarnings("error", message=message)
    # Networks of one class share compiled code; by default PyTorch gives up after eight variants.
    torch._dynamo.config.recompile_limit = 64
    sections = []
    try:
        device = pick_device(args.device)
        if device.index is not None:
            torch.cuda.set_device(device)
        precision = pick_precision(args.precision, device)
        torch.backends.cudnn.benchmark = True  # as while training
        facts = _environment(device)
        print(_heading(facts), flush=True)
        for section, settings in _tasks(args, device):
            sections.append(SECTIONS[section](settings, precision))
            print(f"\n{sections[-1].markdown()}", flush=True)
    except (UserError, UserWarning) as error:
        sys.exit(f"benchmark: error: {error}")
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        content = {"environment": facts, "sections": [section.plain() for section in sections]}
        (args.out / "benchmark.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        text = "\n\n".join([_heading(facts), *(section.markdown() for section in sections)])
        (args.out / "benchmark.md").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
