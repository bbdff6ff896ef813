"""A run without its weights: what it is made of, how long it is, what it costs.

Dry runs, tables and benchmarks need no more of a run, or start from here.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from st3.config import Config
from st3.data import Facts, dataset_facts
from st3.durations import Length
from st3.errors import UserError
from st3.measure import LayerRow, Times, layer_macs, layer_table
from st3.models import build_model
from st3.sparsify import Sparsifier
from st3.sparsify.schedules import RampSettings
from st3.start import Start, find_start
from st3.training.distributed import SINGLE, Processes
from st3.training.machine import Machine
from st3.training.plan import Plan
from st3.training.run_directory import RunDirectory


@dataclass(frozen=True)
class Sketch:
    """A run as it is known before anything is computed."""

    config: Config
    facts: Facts
    plan: Plan
    model: nn.Module
    """On "meta": shapes only."""
    macs: dict[str, int]
    """Of each dense layer, for one image."""
    times: Times | None
    """Of its layers, as measured, where a setting needs them."""
    sparsifier: Sparsifier
    """Of `model`, attached to an optimizer."""
    start: Start | None = None
    """Weights to start from."""
    head: str = ""
    """The layer that starts anew, as those weights are for other classes."""
    sparse_at_start: float = 0.0
    """Fraction of the prunable weights that is zero in them."""

    @property
    def rows(self) -> list[LayerRow]:
        """The layer table, before anything is pruned."""
        return layer_table(self.sparsifier.layers(), self.macs)

    def make_model(self) -> nn.Module:
        """The network as it starts, on the default device."""
        model = make_model(self.config, self.facts)
        if self.start:
            self.start.load(model, self.config)
        return model

    def make_optimizer(self, model: nn.Module) -> Optimizer:
        """Over all trainable parameters."""
        return self.config.optimizer.build(model)

    def make_sparsifier(self, model: nn.Module) -> Sparsifier:
        """Not yet attached."""
        return make_sparsifier(self.config, self.plan, model, self.macs, self.times)


def sketch(config: Config, processes: Processes = SINGLE) -> Sketch:
    """What `config` means. Reads the listing of an image folder at most.

    Raises `UserError` for everything that does not fit together, in all processes.
    """
    facts = processes.together(lambda: dataset_facts(config.dataset))
    start = processes.together(lambda: find_start(config))
    times = processes.together(lambda: find_times(config))
    with torch.device("meta"):
        model = make_model(config, facts)
    data, head, sparsity = config.dataset, "", 0.0
    macs = layer_macs(model, (data.channels, data.image_size, data.image_size))
    if start:
        head = start.load(model, config)
        pruned = make_sparsifier(config, make_plan(config, facts, processes), model, macs, times).pruned_layers
        sparsity = start.sparsity(model, pruned, head)
    plan = make_plan(config, facts, processes, sparsity)
    sparsifier = make_sparsifier(config, plan, model, macs, times).attach(config.optimizer.build(model))
    return Sketch(config, facts, plan, model, macs, times, sparsifier, start, head, sparsity)


def find_times(config: Config) -> Times | None:
    """What `method.times` names; where that is gone, the copy of it in the run that is continued.

    Raises `UserError`, naming the setting, where there is neither, or they are of another network or other images.
    """
    name, data = config.selection.times, config.dataset
    if name is None:
        return None
    file, copy = Path(name), RunDirectory(Path(config.run_dir or "")).times
    try:
        times = Times.read(copy if config.run_dir and copy.exists() and not file.exists() else file)
    except UserError as error:
        raise type(error)(f"method.times: {error}") from error
    try:
        times.check(config.model.name, (data.channels, data.image_size, data.image_size))
    except UserError as error:
        raise UserError(f"method.times={name} {error}") from error
    return times


def make_plan(config: Config, facts: Facts, processes: Processes = SINGLE, sparse_at_start: float = 0.0) -> Plan:
    """Everything in optimizer steps. A ramp starts where the network is already.

    Raises `UserError` when the parts do not fit into the training.
    """
    if config.batch_size % (config.accumulate * processes.world_size):
        raise UserError(
            f"batch_size={config.batch_size} cannot be shared by {processes.world_size} processes in "
            f"{config.accumulate} passes: choose a multiple of {config.accumulate * processes.world_size}"
        )
    if config.augmentation.mixes and config.batch_size == config.accumulate * processes.world_size:
        raise UserError(
            f"batch_size={config.batch_size} leaves one image to a forward pass, and mixup and cutmix mix several: "
            "raise batch_size, or set augmentation.mixup=0 augmentation.cutmix=0"
        )
    steps_per_epoch = facts.train_images // (config.batch_size // config.accumulate) // config.accumulate
    if steps_per_epoch == 0:
        raise UserError(
            f"batch_size={config.batch_size} is larger than the {facts.train_images} training images: lower batch_size"
        )
    length, schedule = Length(steps_per_epoch, config.epochs), config.schedule
    if config.target_sparsity and isinstance(schedule, RampSettings) and sparse_at_start > schedule.initial:
        if sparse_at_start > config.target_sparsity + 0.005:
            raise UserError(
                f"model.weights={config.model.weights} is {sparse_at_start:.2%} sparse already: raise sparsity above"
            )
        schedule = replace(schedule, initial=min(sparse_at_start, config.target_sparsity))
    return Plan(
        length=length,
        classes=facts.classes,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        lr=config.optimizer.lr,
        lr_schedule=config.lr_schedule.over(length),
        sparsity=schedule.over(config.target_sparsity, length),
        target_sparsity=config.target_sparsity,
        finetune_from=schedule.finetune_from(length),
        label_smoothing=config.label_smoothing,
        clip_norm=config.clip_norm,
        seed=config.seed,
        eval_every=config.eval_every,
        log_every=config.log_every,
    )


def make_model(config: Config, facts: Facts) -> nn.Module:
    """The network with its initial weights, on the default device."""
    data = config.dataset
    return build_model(config.model, classes=facts.classes, channels=data.channels, image_size=data.image_size)


def make_sparsifier(
    config: Config, plan: Plan, model: nn.Module, macs: dict[str, int], times: Times | None = None
) -> Sparsifier:
    """Not yet attached. Raises `UserError`, naming the setting, when nothing fits the selection."""
    chosen: dict[str, Any] = vars(config.selection) | {"times": times.layers if times else None}
    try:
        return Sparsifier(
            model,
            config.method,
            plan.sparsity,
            **chosen,
            macs=macs,
            length=plan.length,
            finetune_from=plan.finetune_from if plan.target_sparsity else None,
            raw_step=config.raw_step,
        )
    except UserError as error:
        raise UserError(f"method.{error}" if str(error).startswith(tuple(chosen)) else str(error)) from error


# How steps are executed -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Execution:
    """How steps are executed. It changes their time, and their results by rounding only."""

    compile: bool
    capture: bool
    because: str = ""
    """Why steps are not captured, where capture=auto decided so."""


_BUSY = 2e11
"""Multiply-accumulates of one forward pass that keep any GPU busy longer than it takes to issue the work."""
_WORTH_COMPILING = 2000
"""Optimizer steps that win more time than the compiler takes."""


def choose_execution(run: Sketch, machine: Machine) -> Execution:
    """What compile and capture mean on this machine.

    Raises `UserError` where capture=on or dataset.decode=gpu asks for what cannot be.
    """
    config, plan, on_cuda = run.config, run.plan, machine.device.type == "cuda"
    if config.dataset.decode == "gpu" and not on_cuda:
        raise UserError(f"dataset.decode=gpu needs a CUDA device, not {machine.device}: set dataset.decode=cpu")
    compiled = config.compile == "on" or (config.compile == "auto" and on_cuda and plan.total_steps >= _WORTH_COMPILING)
    if config.capture == "off":
        return Execution(compiled, capture=False)
    reason = ""
    if not on_cuda:
        reason = "CUDA graphs need a CUDA device"
    elif machine.precision == "fp16":
        reason = "the gradient scaler of fp16 decides on the host"
    elif machine.processes.world_size > 1:
        reason = "several processes exchange their gradients in it"
    if config.capture == "on":
        if reason:
            raise UserError(f"capture=on is not possible ({reason}): use capture=auto")
    elif not reason and sum(run.macs.values()) * plan.batch_size / plan.accumulate > _BUSY:
        reason = "its passes keep the device busy as they are"
    return Execution(compiled, capture=not reason, because=reason if on_cuda else "")
