"""Every method in the registry is held to the contract; a toy method shows what the contract notices."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import contract
import pytest
import torch
from contract import CHECKS, CHECKS_OF_ZEROS, shortened
from torch import Tensor

from st3.durations import Duration
from st3.sparsify import METHODS, Dense, Method
from st3.sparsify.masks import MaskPruner, largest
from st3.sparsify.methods import STR

TRIED = {name: shortened(cls()) for name, cls in METHODS.items()}
TRIED["str"] = STR(threshold_init=-3.0)  # from −100 on it takes thousands of steps to the first zero


def name_of(check) -> str:
    return check.__name__.removeprefix("check_")


@pytest.mark.parametrize("method", TRIED.values(), ids=TRIED)
@pytest.mark.parametrize("check", CHECKS, ids=name_of)
def test_every_method(check, method):
    check(method)


@pytest.mark.parametrize("name", [name for name, method in TRIED.items() if not isinstance(method, Dense)])
@pytest.mark.parametrize("check", CHECKS_OF_ZEROS, ids=name_of)
def test_every_method_that_prunes(check, name):
    check(TRIED[name])


def test_no_check_is_left_out():
    defined = {name for name in dir(contract) if name.startswith("check_")} - {"check_all"}
    assert {check.__name__ for check in (*CHECKS, *CHECKS_OF_ZEROS)} == defined


@pytest.mark.parametrize("name", METHODS)
def test_its_yaml_is_its_dataclass(name):
    variants = pytest.importorskip("st3.variants", exc_type=ImportError)
    cls = METHODS[name]
    file = Path(__file__).parents[2] / "configs" / "method" / f"{cls.option or cls.name}.yaml"
    assert file.read_text(encoding="utf-8") == variants.to_yaml(cls)


def test_each_is_registered_under_its_own_name():
    assert all(cls.name == name for name, cls in METHODS.items())


# A method that is in no registry --------------------------------------------------------------------------------------


class ToyPruner(MaskPruner):
    """Keeps the weights that have been large on average."""

    def __init__(self, every: int, weights: Sequence[Tensor]):
        super().__init__(weights, for_good=False)
        self.every = every
        self.average = [torch.zeros_like(w) for w in weights]

    def due(self, step, sparsity, level):
        return sparsity > 0 and step % self.every == 0

    def update(self, step, sparsity, raw, optimizer):
        super().update(step, sparsity, raw, optimizer)
        if raw is None:
            return
        for average, weight in zip(self.average, raw.layers, strict=True):
            average.lerp_(weight.abs(), 0.2)
        if step % self.every == 0:
            self.choose(sparsity)

    def choose(self, sparsity):
        scores = torch.cat([average.flatten() for average in self.average])
        kept = largest(scores, round((1 - sparsity) * scores.numel())).split([a.numel() for a in self.average])
        self.set_masks([mask.view(average.shape) for mask, average in zip(kept, self.average, strict=True)])

    def state_dict(self):
        return super().state_dict() | {"average": [average.clone() for average in self.average]}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        for mine, saved in zip(self.average, state["average"], strict=True):
            mine.copy_(saved)


@dataclass(frozen=True, kw_only=True)
class Toy(Method):
    """A method whose pruner is the toy's, or a broken one."""

    name: ClassVar[str] = "toy"
    follows: ClassVar[str] = "constant"

    every: Duration = Duration(1, "%")
    pruner: type = ToyPruner

    def start(self, weights, schedule, length):
        return self.pruner(self.interval("every", length), weights)


@pytest.mark.parametrize("check", [*CHECKS, *CHECKS_OF_ZEROS], ids=name_of)
def test_a_sound_toy_method_passes(check):
    check(shortened(Toy()))


# What each check notices. The sound parts of the toy stay as they are.


class ForgetsItsAverage(ToyPruner):
    def state_dict(self):
        return MaskPruner.state_dict(self)

    def load_state_dict(self, state):
        MaskPruner.load_state_dict(self, state)


class DrawsAnew(ToyPruner):
    def choose(self, sparsity):
        self.set_masks([torch.rand(mask.shape) > sparsity for mask in self.masks])


class SavesWhatGoesOnChanging(ToyPruner):
    def state_dict(self):
        return super().state_dict() | {"average": self.average}


class ChangesWhatWasLoaded(ToyPruner):
    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.average = state["average"]


class OutlivesItsEnd(ToyPruner):
    def before_step(self, step, sparsity, weights, optimizer):
        def halve(*_):
            weights[0].grad.mul_(0.5)

        if step == 0:
            optimizer.register_step_pre_hook(halve)


class TakesScaledGradients(ToyPruner):
    def before_step(self, step, sparsity, weights, optimizer):
        for average, weight in zip(self.average, weights, strict=True):
            average.add_(weight.grad.abs())


class LearnsFromProjecting(ToyPruner):
    def project(self, raw, sparsity, out):
        for average, weight in zip(self.average, raw.layers, strict=True):
            average.lerp_(weight.abs(), 0.1)
        return super().project(raw, sparsity, out)


class DecaysAlways(ToyPruner):
    def before_step(self, step, sparsity, weights, optimizer):
        weights[0].detach().mul_(0.999)


class IgnoresCosts(ToyPruner):
    def weigh(self, costs):
        pass


class DecidesMoreOftenThanItSays(ToyPruner):
    def due(self, step, sparsity, level):
        return sparsity > 0 and step % (2 * self.every) == 0


class LearnsFromEachPass(ToyPruner):
    def route(self, layer, weight, raw, gradient, step):
        self.average[layer].lerp_(gradient.abs(), 0.1)
        return super().route(layer, weight, raw, gradient, step)


class FollowsTheOrderInMemory(ToyPruner):
    def choose(self, sparsity):
        for mask in self.masks:
            in_memory = mask.as_strided((mask.numel(),), (1,)).fill_(False)
            in_memory[: round((1 - sparsity) * mask.numel())] = True


class ProjectsNothingButItsOwn(ToyPruner):
    def update(self, step, sparsity, raw, optimizer):
        super().update(step, sparsity, raw, optimizer)
        self.own = raw

    def project(self, raw, sparsity, out):
        return super().project(self.own, sparsity, out)


class WorksMoreNowAndThen(ToyPruner):
    def update(self, step, sparsity, raw, optimizer):
        super().update(step, sparsity, raw, optimizer)
        if step % 7 == 0:
            self.average[0].mul_(1.0)


class KeepsAFewTooMany(ToyPruner):
    def choose(self, sparsity):
        super().choose(sparsity - 0.002)


class NeedsTheLayersThatItKnows(ToyPruner):
    def choose(self, sparsity):
        super().choose(sparsity)
        if len(self.masks) < 5:
            self.masks[0].fill_(True)


class NeedsAllGradients(ToyPruner):
    def before_step(self, step, sparsity, weights, optimizer):
        for weight in weights:
            weight.grad.mul_(1.0)


class ClimbsUp(ToyPruner):
    def route(self, layer, weight, raw, gradient, step):
        return -super().route(layer, weight, raw, gradient, step)


@pytest.mark.parametrize(
    ("pruner", "check"),
    [
        (ForgetsItsAverage, contract.check_same_twice_and_continued),
        (DrawsAnew, contract.check_same_twice_and_continued),
        (SavesWhatGoesOnChanging, contract.check_state_is_a_snapshot),
        (ChangesWhatWasLoaded, contract.check_state_is_a_snapshot),
        (OutlivesItsEnd, contract.check_detach_ends_it),
        (TakesScaledGradients, contract.check_skipped_steps_change_nothing),
        (LearnsFromProjecting, contract.check_projection_changes_no_state),
        (DecaysAlways, contract.check_sparsity_zero_is_dense_training),
        (IgnoresCosts, contract.check_flops_target),
        (IgnoresCosts, contract.check_latency_target),
        (DecidesMoreOftenThanItSays, contract.check_forecast_of_mask_updates),
        (LearnsFromEachPass, contract.check_two_passes_are_one_of_all_images),
        (FollowsTheOrderInMemory, contract.check_memory_layout_changes_nothing),
        (ProjectsNothingButItsOwn, contract.check_an_average_is_as_sparse),
        (WorksMoreNowAndThen, contract.check_steps_of_a_kind_are_the_same_work),
        (KeepsAFewTooMany, contract.check_zeros),
        (NeedsTheLayersThatItKnows, contract.check_only_the_chosen_layers_are_pruned),
        (NeedsAllGradients, contract.check_a_layer_without_gradient_is_no_trouble),
        (ClimbsUp, contract.check_adamw_trains),
    ],
)
def test_a_broken_method_is_noticed(pruner, check):
    with pytest.raises((AssertionError, AttributeError)):
        check(shortened(Toy(pruner=pruner)))


def test_every_check_has_noticed_something():
    [pairs] = [mark.args[1] for mark in test_a_broken_method_is_noticed.pytestmark]
    assert {check for _, check in pairs} == {*CHECKS, *CHECKS_OF_ZEROS}
