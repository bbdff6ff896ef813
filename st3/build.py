"""From a checked `Config` to the plain objects that a run is made of."""

from dataclasses import asdict, dataclass, fields, replace

import torch
from torch import nn

from st3.config import Config
from st3.data import Data, build_data, dataset_facts
from st3.errors import UserError
from st3.models import build_model
from st3.sparsify import METHODS, AlternatingPhases, Constant, Method, PolynomialRamp, Schedule, Sparsifier
from st3.training.distributed import SINGLE, Processes
from st3.training.durations import to_steps
from st3.training.loop import Step
from st3.training.lr_schedules import ConstantLR, CosineLR, MultiStepLR, OneCycleLR
from st3.training.optimizers import build_optimizer
from st3.training.plan import LRSchedule, Plan
from st3.training.precision import Precision
from st3.training.state import TrainingState
from st3.training.step import CapturedStep, EagerStep


@dataclass(frozen=True)
class Facts:
    """Sizes of the data set, known without reading an image."""

    classes: int
    train_images: int
    """What is trained on, after the hold-out."""
    val_images: int
    test_images: int


def read_facts(config: Config) -> Facts:
    """From the configuration, or from the folder's listing where it is silent. Raises `UserError`."""
    data = config.dataset
    classes, train_images, test_images = dataset_facts(
        data.name, data.root, data.classes, data.train_images, data.test_images
    )
    if data.val_images >= train_images:
        raise UserError(f"dataset.val_images={data.val_images} leaves nothing of {train_images} training images")
    return Facts(classes, train_images - data.val_images, data.val_images, test_images)


def make_plan(config: Config, facts: Facts, processes: Processes = SINGLE) -> Plan:
    """Everything in optimizer steps. Raises `UserError` when the parts do not fit into the training."""
    if config.batch_size % (config.accumulate * processes.world_size):
        raise UserError(
            f"batch_size={config.batch_size} cannot be shared by {processes.world_size} processes in "
            f"{config.accumulate} passes: choose a multiple of {config.accumulate * processes.world_size}"
        )
    steps_per_epoch = facts.train_images // (config.batch_size // config.accumulate) // config.accumulate
    if steps_per_epoch == 0:
        raise UserError(
            f"batch_size={config.batch_size} is larger than the {facts.train_images} training images: lower batch_size"
        )

    def steps(duration: str, setting: str) -> int:
        return to_steps(duration, setting, steps_per_epoch=steps_per_epoch, epochs=config.epochs)

    total = steps_per_epoch * config.epochs
    return Plan(
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        batch_size=config.batch_size,
        accumulate=config.accumulate,
        lr=config.optimizer.lr,
        lr_schedule=_lr_schedule(config, total, steps),
        sparsity=_sparsity(config, total, steps),
        target_sparsity=config.target_sparsity,
        label_smoothing=config.label_smoothing,
        clip_norm=config.clip_norm,
        seed=config.seed,
        eval_every=config.eval_every,
        log_every=config.log_every,
    )


def _sparsity(config: Config, total: int, steps) -> Schedule:
    schedule = config.schedule
    if config.method.name == "dense" or schedule.name == "constant":
        return Constant(config.target_sparsity)
    start, end = steps(schedule.start, "schedule.start"), steps(schedule.end, "schedule.end")
    if schedule.name == "alternating":
        period, last_dense = (
            steps(schedule.period, "schedule.period"),
            steps(schedule.last_dense, "schedule.last_dense"),
        )
        try:
            return AlternatingPhases(
                final=config.sparsity, start=start, period=period, last_dense=last_dense, end=min(end, total - 1)
            )
        except UserError as error:
            raise UserError(f"schedule: {error}") from error
    if end < start:
        raise UserError(
            f"schedule.end={schedule.end} (step {end}) comes before schedule.start={schedule.start} (step {start})"
        )
    if end > total:
        raise UserError(
            f"schedule.end={schedule.end} (step {end}) comes after the end of training (step {total}): "
            "lower schedule.end or raise epochs"
        )
    # The last projection is step total − 1: a ramp that ends with the training ends there.
    end = min(end, total - 1)
    return PolynomialRamp(final=config.sparsity, start=min(start, end), end=end, power=schedule.power)


def _lr_schedule(config: Config, total: int, steps) -> LRSchedule:
    schedule = config.lr_schedule
    warmup = steps(schedule.warmup, "lr_schedule.warmup")
    if warmup >= total:
        raise UserError(f"lr_schedule.warmup={schedule.warmup} fills all {total} steps: lower it or raise epochs")
    if schedule.name == "constant":
        return ConstantLR(warmup=warmup)
    if schedule.name == "cosine":
        return CosineLR(total=total, final=schedule.final, warmup=warmup)
    if schedule.name == "one_cycle":
        return OneCycleLR(total=total, warmup=warmup, initial=schedule.initial, final=schedule.final)
    milestones = tuple(steps(m, "lr_schedule.milestones") for m in schedule.milestones)
    if list(milestones) != sorted(milestones) or (milestones and milestones[-1] > total):
        raise UserError(
            f"lr_schedule.milestones={schedule.milestones} (steps {list(milestones)}) must not fall and lie within "
            f"the {total} steps of training"
        )
    return MultiStepLR(milestones=milestones, gamma=schedule.gamma, warmup=warmup)


def make_model(config: Config, facts: Facts) -> nn.Module:
    """The network with its initial weights, on the default device."""
    return build_model(
        **asdict(config.model),
        classes=facts.classes,
        channels=config.dataset.channels,
        image_size=config.dataset.image_size,
    )


def make_method(config: Config, plan: Plan) -> Method:
    """The method with the settings that the configuration makes, durations in steps. Raises `UserError`."""
    method, given = METHODS[config.method.name], {}
    for field in fields(method):
        if (value := getattr(config.method, field.name, None)) is not None:
            given[field.name] = value
            if field.name in ("every", "until"):
                steps = to_steps(
                    value, f"method.{field.name}", steps_per_epoch=plan.steps_per_epoch, epochs=plan.epochs
                )
                if field.name == "until" and steps > plan.total_steps:
                    raise UserError(
                        f"method.until={value} (step {steps}) comes after the end of training (step "
                        f"{plan.total_steps}): lower method.until or raise epochs"
                    )
                given[field.name] = steps
    return replace(method, **given)


def make_sparsifier(config: Config, plan: Plan, model: nn.Module, macs: dict[str, int]) -> Sparsifier:
    """Not yet attached. Raises `UserError`, naming the setting, when nothing fits the selection."""
    chosen = {name: getattr(config.method, name) for name in ("include", "exclude", "target")}
    try:
        return Sparsifier(model, make_method(config, plan), plan.sparsity, **chosen, macs=macs)
    except UserError as error:
        raise UserError(f"method.{error}" if str(error).startswith(tuple(chosen)) else str(error)) from error


def make_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Over all trainable parameters; decay on Conv and Linear weights."""
    return build_optimizer(model, **asdict(config.optimizer))


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


def choose_execution(
    config: Config, plan: Plan, precision: Precision, processes: Processes, macs: int, steps_differ: bool
) -> Execution:
    """What compile and capture mean here; `macs` are those of one image, `steps_differ` is the sparsifier's.

    Raises `UserError` where capture=on or dataset.decode=gpu asks for what cannot be.
    """
    on_cuda = precision.device.type == "cuda"
    if config.dataset.decode == "gpu" and not on_cuda:
        raise UserError(f"dataset.decode=gpu needs a CUDA device, not {precision.device}: set dataset.decode=cpu")
    compiled = config.compile == "on" or (config.compile == "auto" and on_cuda and plan.total_steps >= _WORTH_COMPILING)
    if config.capture == "off":
        return Execution(compiled, capture=False)
    reason = ""
    if not on_cuda:
        reason = "CUDA graphs need a CUDA device"
    elif precision.name == "fp16":
        reason = "the gradient scaler of fp16 decides on the host"
    elif processes.world_size > 1:
        reason = "several processes exchange their gradients in it"
    elif steps_differ:
        reason = f"{config.method.name} decides on the host in every step"
    if config.capture == "on":
        if reason:
            raise UserError(f"capture=on is not possible ({reason}): use capture=auto")
    elif not reason and macs * plan.batch_size / plan.accumulate > _BUSY:
        reason = "its passes keep the device busy as they are"
    return Execution(compiled, capture=not reason, because=reason if on_cuda else "")


def make_step(
    config: Config, state: TrainingState, plan: Plan, precision: Precision, execution: Execution, processes: Processes
) -> Step:
    """The optimizer step. To be made before a checkpoint is loaded into `state`."""
    forward = processes.wrap(state.model)
    if execution.compile:
        # With "auto" a part that cannot be compiled runs as it is, and PyTorch says so; with "on" it is an error.
        torch._dynamo.config.suppress_errors = config.compile == "auto"
        forward = torch.compile(forward)
    eager = EagerStep(state, plan, precision, forward, processes)
    return CapturedStep(eager, required=config.capture == "on") if execution.capture else eager


def make_data(config: Config, device: torch.device, rank: int = 0, world_size: int = 1) -> Data:
    """Reads the data; batches arrive on `device`, one forward pass's worth each, shared by `world_size` processes."""
    return build_data(
        **asdict(config.dataset),
        batch_size=config.batch_size // config.accumulate,
        seed=config.seed,
        device=device,
        rank=rank,
        world_size=world_size,
    )
