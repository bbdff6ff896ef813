"""Whole epochs of the CIFAR-10 recipe: augmentation, steps, rows of metrics, evaluation."""

from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace

from benchmarks import harness
from benchmarks.checks import check_weights
from benchmarks.harness import SPARSITY, Columns, Result, Section
from benchmarks.training import NOTES, Training, chosen_methods
from st3.compose import compose_config
from st3.config import Config
from st3.data import Data, build_data
from st3.durations import Interval, Length
from st3.measure import SparsityMeter
from st3.measure.timing import spread
from st3.sketch import sketch
from st3.training.keeper import Keeper
from st3.training.loop import fit
from st3.training.machine import Machine
from st3.training.recorder import SilentRecorder
from st3.training.signals import Signals


class EpochContender(Training):
    """The next epoch of a method's training."""

    def __init__(self, config: Config, method: str, data: Data, machine: Machine):
        super().__init__(method, "epoch", machine)
        self.config, self.data, self.waiting = config, data, list[float]()

    def build(self) -> None:
        self.make(self.config, self.name)
        parts = {"compiled": self.execution.compile, "captured": self.execution.capture}
        self.result["execution"] = "+".join(part for part, on in parts.items() if on) or "eager"

    def work(self) -> None:
        state, before = self.state, self.state.data_seconds
        plan = replace(self.plan, length=Length(self.plan.steps_per_epoch, state.epoch + 1))
        meter = SparsityMeter(self.sparsifier, self.macs)
        recorder = SilentRecorder()
        keeper = Keeper(self.machine.processes, recorder, Signals(), Interval())  # which keeps nothing
        fit(state, self.data, plan, self.machine, self.step, recorder, keeper, meter)
        self.waiting.append(state.data_seconds - before)

    def warm_up(self) -> None:
        self.result["first_epoch_seconds"] = harness.timed(self.work, 1, self.machine.wait)
        self.waiting.clear()

    def check(self) -> Result:
        found = {"warm_up_seconds": self.state.warmup_seconds, "scores": self.state.scores}
        self.final_step(next(iter(self.data.train.epoch(0))))
        found["data_share"] = spread([a / b for a, b in zip(self.waiting, self.seconds, strict=True)])
        images = self.plan.steps_per_epoch * self.plan.batch_size
        found["images_per_second"] = spread([images / each for each in self.seconds])
        return found | check_weights(self.name, self.sparsifier)


def epoch_config(args: Namespace) -> Config:
    names = "train_images", "val_images", "test_images"
    data = ["dataset=fake", "dataset.augment=crop_flip", *(f"dataset.{name}={getattr(args, name)}" for name in names)]
    if args.root:
        data = ["dataset=cifar10_folder", f"dataset.root={args.root}", "dataset.classes=null"]
        data += ["dataset.train_images=null", "dataset.test_images=null"]
    quick = [f"batch_size={args.batch}"] if args.quick else []
    return compose_config(["recipe=cifar10_resnet20", *data, *quick, "schedule=constant", f"sparsity={SPARSITY}"])


def epoch_table(args: Namespace, machine: Machine) -> Iterator[Section]:
    config, methods = epoch_config(args), chosen_methods(args.methods)
    facts = sketch(config).facts  # where the settings themselves are wrong, there is no table
    order = {"batch_size": config.batch_size, "seed": config.seed}
    data = build_data(config.dataset, augmentation=config.augmentation, device=machine.device, **order)
    contenders = [EpochContender(config, method, data, machine) for method in methods]
    harness.contest(contenders, "dense", args, machine.wait)
    columns: Columns = {
        "method": lambda result: result["contender"],
        "steps": lambda result: result["execution"],
        **harness.time_columns("s/epoch", 1, "dense"),
        "images/s": lambda result: f"{result['images_per_second']['median']:,.0f}",
        "waiting for data": lambda result: f"{result['data_share']['median']:.1%}",
        "exact zeros": harness.zeros_of,
    }
    notes = [
        f"n = {harness.rounds_done(contenders, args)} epochs of each, alternating, after a first one, not counted.",
        f"{facts.train_images:,} training, {facts.val_images:,} validation and {facts.test_images:,} test images"
        f"{'' if args.root else ', random'}; sparsity {SPARSITY} throughout.",
        "An epoch: shuffling, crop and flip, all steps, rows of metrics, evaluation of validation and test images, "
        "without writing files; images/s counts the training images only.",
        "Compiling and capturing as the command decides for a run of full length.",
    ]
    for each in (each for each in contenders if each.seconds and each.every):
        steps = f"every {each.every:,} steps; an epoch has {each.plan.steps_per_epoch:,}"
        notes.append(f"{each.name}: updates its masks {steps}.")
    notes += [f"{method}: {NOTES[method]}" for method in methods if method in NOTES]
    args.train_images, args.val_images, args.test_images = facts.train_images, facts.val_images, facts.test_images
    title = f"An epoch of recipe=cifar10_resnet20, batch {config.batch_size}, {machine.precision}"
    yield Section(title, args, notes, contenders, columns)
