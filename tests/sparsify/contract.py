"""What every method is held to. Each `check_…(method)` also takes one that is in no registry.

A method is tried as it comes, with the schedule that it says it follows, in a training of `STEPS` steps; `shortened`
makes its intervals fit. No check knows any method.
"""

import copy
import io
from dataclasses import replace
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from helpers import (
    SPARSE,
    adamw,
    assert_same,
    batch,
    load,
    masks_of,
    sgd,
    smooth,
    start,
    states,
    train,
    weights_of,
    zeros_of,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from st3 import Sparsifier, UserError
from st3.durations import Duration, Length
from st3.settings import hints
from st3.sparsify import AlternatingPhases, Constant, LayerTimes, Method, PolynomialRamp, Schedule

STEPS = 24
RAMP = PolynomialRamp(final=0.8, start=2, end=14)  # ends between two updates
PHASES = AlternatingPhases(final=0.8, start=3, period=4, last_dense=15, end=19)
INTERVAL = 4
"""Steps between updates of masks where the method's own interval would be less."""


def shortened(method: Method) -> Method:
    """With the durations that would be less than four steps made four, so that there are steps between updates."""
    given = {key: getattr(method, key) for key, kind in hints(type(method)).items() if kind is Duration}
    short = [key for key, each in given.items() if each.amount and each.steps(Length(STEPS)) < INTERVAL]
    return replace(method, **dict.fromkeys(short, INTERVAL))


def schedule_for(method: Method) -> Schedule:
    """Of the kind that it follows: a constant, AC/DC's phases, or else a ramp."""
    return {"constant": SPARSE, "acdc": PHASES}.get(method.follows, RAMP)


def begin(method: Method, dtype: torch.dtype = torch.float32, make=sgd, **options):
    """Model, optimizer, attached sparsifier."""
    return start(method, schedule_for(method), dtype, make, length=STEPS, **options)


def masks_or_zeros(sparsifier: Sparsifier) -> list[Tensor]:
    """The masks that the method keeps, or where the weights are zero."""
    found = masks_of(sparsifier) if "masks" in sparsifier.state_dict()["method"] else zeros_of(sparsifier)
    return list(found.values())


# Its state ------------------------------------------------------------------------------------------------------------


def check_same_twice_and_continued(method: Method) -> None:
    """Bit for bit: after any step, in a sparsifier that has trained something else; and from a file in a fresh one."""
    whole = begin(method)
    losses, saved = [], [copy.deepcopy(states(*whole))]
    for step in range(STEPS):
        losses += train(*whole[:2], [step])
        saved.append(copy.deepcopy(states(*whole)))

    again = begin(method)
    assert train(*again[:2], range(STEPS)) == losses
    assert_same(states(*again), saved[-1])

    def continued(other, step, until):
        assert other[2].step == step
        assert train(*other[:2], range(step, until)) == losses[step:until], step
        assert_same(states(*other), saved[until])

    model = smooth()
    torch.manual_seed(5)  # it draws other numbers, which are overwritten
    optimizer = sgd(model)
    elsewhere = model, optimizer, Sparsifier(model, method, schedule_for(method), length=STEPS).attach(optimizer)
    train(*elsewhere[:2], range(100, 110))
    for step in reversed(range(STEPS)):  # from a later state back to an earlier one
        load(elsewhere, saved[step])
        continued(elsewhere, step, step + 1)

    fresh, file, half = begin(method), io.BytesIO(), STEPS // 2
    torch.save(saved[half], file)
    file.seek(0)
    load(fresh, torch.load(file, weights_only=True))
    continued(fresh, half, STEPS)


def check_state_is_a_snapshot(method: Method) -> None:
    """Training changes neither what was saved nor what was loaded; a state fits another layout in memory."""
    parts = begin(method, torch.float64)
    train(*parts[:2], range(12), torch.float64)
    saved = parts[2].state_dict()
    others, before = copy.deepcopy([part.state_dict() for part in parts[:2]]), copy.deepcopy(saved)
    losses = train(*parts[:2], range(12, 18), torch.float64)
    assert_same(saved, before)
    for layout in (torch.contiguous_format, torch.channels_last):
        model = smooth(torch.float64).to(memory_format=layout)
        optimizer = sgd(model)
        restored = Sparsifier(model, method, schedule_for(method), length=STEPS).attach(optimizer)
        load((model, optimizer), others)
        restored.load_state_dict(saved)
        assert train(model, optimizer, range(12, 18), torch.float64) == pytest.approx(losses, abs=1e-9)
        assert_same(saved, before)


def check_detach_ends_it(method: Method) -> None:
    """What follows is plain training of what the model holds, bit for bit."""
    model, optimizer, sparsifier = begin(method, make=partial(sgd, momentum=0))
    train(model, optimizer, range(10))
    sparsifier.detach()
    plain = copy.deepcopy(model)
    assert train(model, optimizer, range(10, 14)) == train(plain, sgd(plain, momentum=0), range(10, 14))
    assert_same(list(model.state_dict().values()), list(plain.state_dict().values()))
    assert sparsifier.step == 10


def check_skipped_steps_change_nothing(method: Method) -> None:
    """With a gradient scaler that skips a step after each real one, training is that without a scaler.

    Fused optimizers check for infinities themselves: their hooks run on skipped steps, too, and they take the scale off
    the gradients only after the method has seen them.
    """
    for fused in (False, True):
        make = partial(sgd, fused=fused)
        plain, scaled = begin(method, make=make), begin(method, make=make)
        losses = train(*plain[:2], range(17))
        model, optimizer, _ = scaled
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
        for step, expected in enumerate(losses):
            images, labels = batch(step)
            loss = F.cross_entropy(model(images), labels)
            assert loss.item() == expected, step
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            for poisoned in (False, True):
                if poisoned:
                    for p in model.parameters():
                        p.grad.fill_(torch.inf)
                scaler.step(optimizer)
                scaler.update(2.0**10)
        assert_same(states(*scaled), states(*plain))


def check_projection_changes_no_state(method: Method) -> None:
    """And gives what the model holds."""
    model, optimizer, sparsifier = begin(method)
    for step in range(STEPS):
        train(model, optimizer, [step])
        if step % 5 == 0:
            before = copy.deepcopy(sparsifier.state_dict())
            for _ in range(2):
                assert_same(sparsifier.project(sparsifier.raw_weights()), weights_of(sparsifier))
            assert_same(sparsifier.state_dict(), before)


# How sparse it is -----------------------------------------------------------------------------------------------------


def check_zeros(method: Method) -> None:
    """The schedule's number of zeros, to one weight, at the end; also where a ramp ends between two updates, or with
    the training. Never fewer at an update, unless masks are relaxed then. An outcome is only not nothing.
    """
    own = schedule_for(method)
    count_zeros(*begin(method), own)
    if isinstance(own, PolynomialRamp):
        ramp = PolynomialRamp(final=0.83, start=3, end=STEPS - 1, power=1)
        try:
            parts = start(method, ramp, length=STEPS)
        except UserError:  # it needs time after the ramp
            return
        count_zeros(*parts, ramp)


def count_zeros(model: nn.Module, optimizer: torch.optim.Optimizer, sparsifier: Sparsifier, schedule: Schedule) -> None:
    """The training that `check_zeros` speaks of."""
    relaxed = any(mask.dtype != torch.bool for mask in masks_or_zeros(sparsifier))
    updates = sparsifier.mask_updates()
    counts = []
    for step in range(STEPS):
        train(model, optimizer, [step])
        counts.append(sparsifier.zeros().sum().item())
        assert sparsifier.sparsity == schedule.value(step)
        kept_are_above_the_threshold(sparsifier)
        if not relaxed and not sparsifier.sparsity_is_outcome and (updates is None or step in updates):
            assert counts[-1] >= schedule.value(step) * sparsifier.prunable - 1, step
    if sparsifier.sparsity_is_outcome:
        assert counts[-1] > 0
        return
    assert abs(counts[-1] - schedule.value(STEPS) * sparsifier.prunable) <= 1
    assert sparsifier.reaches(schedule.value(STEPS))
    if isinstance(schedule, PolynomialRamp):
        assert not any(counts[: schedule.start + 1])
        assert relaxed or all(one <= other for one, other in pairwise(counts))


def kept_are_above_the_threshold(sparsifier: Sparsifier) -> None:
    """Where a layer has a threshold, the raw weights above it are those that are not zero."""
    raw, weights = sparsifier.raw_weights(), weights_of(sparsifier)
    for layer in sparsifier.layers():
        if layer.threshold:
            kept, magnitude = weights[layer.name] != 0, raw[layer.name].abs()
            assert (magnitude[kept] >= layer.threshold * (1 - 1e-6)).all()
            assert (magnitude[~kept] <= layer.threshold * (1 + 1e-6)).all()


def check_sparsity_zero_is_dense_training(method: Method) -> None:
    """Bit for bit: at sparsity 0, and as long as the schedule is at 0, unless the method keeps raw weights from the
    start on. Weights that begin at zero learn, too."""
    own = schedule_for(method)
    at_work = begin(method)[2].state_dict()["raw"]
    until_sparse = 0 if at_work else next(step for step in range(STEPS) if own.value(step))
    for schedule, steps in ((Constant(0.0), 10), (own, until_sparse)):
        if not steps:
            continue
        model, plain = smooth(), smooth()
        for each in (model, plain):
            nn.init.zeros_(each[9].weight)
        optimizer, other = sgd(model), sgd(plain)
        Sparsifier(model, method, schedule, length=STEPS).attach(optimizer)
        assert train(model, optimizer, range(steps)) == train(plain, other, range(steps))
        assert_same(list(model.state_dict().values()), list(plain.state_dict().values()))


def check_only_the_chosen_layers_are_pruned(method: Method) -> None:
    """And they share the target."""
    model, optimizer, sparsifier = begin(method, include=["[347]", "9"], exclude=["9"])
    assert sparsifier.pruned_layers == ["3", "4", "7"]
    train(model, optimizer, range(STEPS))
    for layer in sparsifier.layers():
        assert (layer.zeros > 0) == (layer.name in "347")
    if not sparsifier.sparsity_is_outcome:
        assert abs(sparsifier.zeros().sum().item() - 0.8 * sparsifier.prunable) <= 1


def begin_or_refuse(method: Method, target: str, **options):
    """As `begin`, or None where the method refuses the target, in one line that says what to do."""
    refusal = ""
    try:
        return begin(method, target=target, **options)
    except UserError as error:
        refusal = str(error)
    assert f"target={target} is for" in refusal
    assert "\n" not in refusal
    return None


def check_latency_target(method: Method) -> None:
    """Exact, or refused. Removing weights saves nothing at first, or ever, or at once."""
    sizes = {name: smooth().get_submodule(name).weight.numel() for name in "03479"}
    even = {"0": 0.5, "3": 1.5, "4": 0.0, "7": 0.8, "9": 0.3}  # where the sparse kernel is as fast, of the weights
    times = {
        name: LayerTimes(weights=size, dense_ms=0.01 + even[name] * size * 1e-3, base_ms=0.01, ms_per_weight=1e-3)
        for name, size in sizes.items()
    }
    begun = begin_or_refuse(method, "latency", times=times)
    if not begun:
        return
    model, optimizer, sparsifier = begun
    train(model, optimizer, range(STEPS))
    if not sparsifier.reaches(0.3):  # it removes nothing but what the sparse kernels save as they are
        return
    left = sum(times[name].ms(sizes[name] - int(zeros.sum())) for name, zeros in zeros_of(sparsifier).items())
    assert abs(left - 0.2 * sum(each.dense_ms for each in times.values())) <= 1.001e-3  # ms of one weight
    assert sparsifier.reaches(0.8)


def check_flops_target(method: Method) -> None:
    """Exact, or refused."""
    places = {"0": 64, "3": 36, "4": 36, "7": 1, "9": 1}
    macs = {name: place * smooth().get_submodule(name).weight.numel() for name, place in places.items()}
    begun = begin_or_refuse(method, "flops", macs=macs)
    if not begun:
        return
    model, optimizer, sparsifier = begun
    train(model, optimizer, range(STEPS))
    if not sparsifier.reaches(0.1):  # it removes nothing at all, whatever is asked
        return
    removed = sum(places[name] * zeros.sum().item() for name, zeros in zeros_of(sparsifier).items())
    assert abs(removed - 0.8 * sum(macs.values())) <= max(places.values())
    assert sparsifier.reaches(0.8)


def check_forecast_of_mask_updates(method: Method) -> None:
    """`mask_updates()` are the steps in which masks, or zeros, changed in a real training."""
    model, optimizer, sparsifier = begin(method)
    forecast = sparsifier.mask_updates()
    if forecast is None:
        forecast = [step for step in range(STEPS) if sparsifier.schedule.value(step)]
    changed, before = [], copy.deepcopy(masks_or_zeros(sparsifier))
    for step in range(STEPS):
        train(model, optimizer, [step])
        after = copy.deepcopy(masks_or_zeros(sparsifier))
        if any(not torch.equal(one, other) for one, other in zip(before, after, strict=True)):
            changed.append(step)
        before = after
    assert changed == forecast


# In company -----------------------------------------------------------------------------------------------------------


def check_two_passes_are_one_of_all_images(method: Method) -> None:
    """At every kind of step: the gradients of both passes decide what grows."""
    results = []
    for parts in (1, 2):
        model = smooth(torch.float64)
        model[1] = nn.Identity()  # BatchNorm would see other batches
        optimizer = sgd(model)
        sparsifier = Sparsifier(model, method, schedule_for(method), length=STEPS).attach(optimizer)
        for step in range(STEPS):
            images, labels = batch(step, torch.float64)
            optimizer.zero_grad()
            for x, y in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                (F.cross_entropy(model(x), y) / parts).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.1)
            optimizer.step()
        results.append((zeros_of(sparsifier), sparsifier.raw_weights()))
    (one, one_raw), (two, two_raw) = results
    for name in one:
        assert torch.equal(one[name], two[name])
        torch.testing.assert_close(one_raw[name], two_raw[name], atol=1e-9, rtol=0)


def check_memory_layout_changes_nothing(method: Method) -> None:
    """But rounding; also where the model gets it only after the Sparsifier has been made."""
    runs = []
    for convert_before, convert_after in ((False, False), (True, False), (False, True)):
        model = smooth(torch.float64)
        if convert_before:
            model.to(memory_format=torch.channels_last)
        sparsifier = Sparsifier(model, method, schedule_for(method), length=STEPS)
        if convert_after:
            model.to(memory_format=torch.channels_last)
        optimizer = sgd(model)
        sparsifier.attach(optimizer)
        runs.append((train(model, optimizer, range(STEPS), torch.float64), zeros_of(sparsifier)))
        assert gradient_strides(model) == gradient_strides(copy.deepcopy(model))
    for losses, zeros in runs[1:]:
        assert losses == pytest.approx(runs[0][0], abs=1e-9)
        assert_same(zeros, runs[0][1])


def gradient_strides(model: nn.Module) -> list[tuple[int, ...]]:
    """How gradients lie in memory. A copy of the model has none of the sparsifier's hooks."""
    model.zero_grad()
    images, labels = batch(0, torch.float64)
    F.cross_entropy(model(images), labels).backward()
    return [p.grad.stride() for p in model.parameters()]


class OneIsIdle(nn.Module):
    """With a layer that takes no part, so that its weight never has a gradient."""

    def __init__(self):
        super().__init__()
        self.net, self.idle = smooth(), nn.Linear(20, 20)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def check_a_layer_without_gradient_is_no_trouble(method: Method) -> None:
    """It is pruned like the others."""
    model = OneIsIdle()
    optimizer = sgd(model)
    sparsifier = Sparsifier(model, method, schedule_for(method), length=STEPS).attach(optimizer)
    train(model, optimizer, range(STEPS))
    assert all(weight.isfinite().all() for weight in sparsifier.raw_weights().values())
    assert (weights_of(sparsifier)["idle"] == 0).any()
    if not sparsifier.sparsity_is_outcome:
        assert abs(sparsifier.zeros().sum().item() - 0.8 * sparsifier.prunable) <= 1


def check_an_average_is_as_sparse(method: Method) -> None:
    """Averaged raw weights, projected as the step projects its own; also where they take the place of the raw ones."""
    model, optimizer, sparsifier = begin(method)
    average = {name: raw.clone() for name, raw in sparsifier.raw_weights().items()}
    for step in range(STEPS):
        train(model, optimizer, [step])
        for name, raw in sparsifier.raw_weights().items():
            average[name].lerp_(raw, 0.1)
        projected = sparsifier.project(average)
        if not sparsifier.state_dict()["raw"]:
            assert_same(projected, average)
        elif "masks" in sparsifier.state_dict()["method"]:
            for name, mask in masks_of(sparsifier).items():
                assert (projected[name][mask == 0] == 0).all()
        elif not sparsifier.sparsity_is_outcome:
            assert sum((w == 0).sum() for w in projected.values()) == sparsifier.zeros().sum()
    sparsifier.load_state_dict(sparsifier.state_dict() | {"raw": average})
    assert_same(weights_of(sparsifier), projected)


def check_adamw_trains(method: Method) -> None:
    """The loss falls, to the same sparsity."""
    model, optimizer, sparsifier = begin(method, make=adamw)
    losses = train(model, optimizer, [step % 3 for step in range(STEPS + 12)])
    assert sum(losses[-3:]) < sum(losses[:3])
    if not sparsifier.sparsity_is_outcome:
        # An exact zero more may be a weight that was grown where no gradient arrives.
        zeros, target = sparsifier.zeros().sum().item(), 0.8 * sparsifier.prunable
        assert target - 1 <= zeros <= target + 5


# What a captured step needs to know -----------------------------------------------------------------------------------


class Recorder(TorchDispatchMode):
    """Which operations are done, on tensors of which shapes."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((str(func), [tuple(a.shape) for a in args if isinstance(a, Tensor)]))
        return func(*args, **kwargs or {})


def check_steps_of_a_kind_are_the_same_work(method: Method) -> None:
    """And those in which masks change on the host are of none. The first step of each kind may make what it needs."""
    model, optimizer, sparsifier = begin(method)
    updates = sparsifier.mask_updates() or []
    count_step = sparsifier.count_step

    def count_unseen():  # a captured step is replayed without it
        with _disable_current_modes():
            count_step()

    sparsifier.count_step = count_unseen
    work: dict = {}
    for step in range(STEPS):
        kind = sparsifier.next_step()
        assert sparsifier.next_step(step) == kind
        assert (kind is None) == (step in updates)
        images, labels = batch(step)
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        with Recorder() as recorder:
            loss.backward()
            optimizer.step()
        work.setdefault(kind, []).append(recorder.seen)
    work.pop(None, None)
    assert all(one == other for same in work.values() for one, other in pairwise(same[1:]))
    assert any(len(same) > 2 for same in work.values())


CHECKS = (
    check_same_twice_and_continued,
    check_state_is_a_snapshot,
    check_detach_ends_it,
    check_skipped_steps_change_nothing,
    check_projection_changes_no_state,
    check_sparsity_zero_is_dense_training,
    check_flops_target,
    check_latency_target,
    check_forecast_of_mask_updates,
    check_two_passes_are_one_of_all_images,
    check_memory_layout_changes_nothing,
    check_an_average_is_as_sparse,
    check_steps_of_a_kind_are_the_same_work,
)
"""What holds for any method."""

CHECKS_OF_ZEROS = (
    check_zeros,
    check_only_the_chosen_layers_are_pruned,
    check_a_layer_without_gradient_is_no_trouble,
    check_adamw_trains,
)
"""What holds for those that prune."""


def check_all(method: Method) -> None:
    """Hold a method that prunes to everything."""
    for check in (*CHECKS, *CHECKS_OF_ZEROS):
        check(method)
