"""A run in words: what will be done, and what came out."""

import math
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import st3
from st3.config import Config
from st3.data import Data, data_warnings, folders_used, named
from st3.measure import LayerRow, format_table, totals
from st3.optim.lr_schedules import MultiStepSettings
from st3.settings import Settings
from st3.sketch import Execution, Sketch
from st3.sparsify import HAM, ST3, AlternatingPhases, GlobalThreshold, PolynomialRamp, left_alone
from st3.sparsify.methods.probmask import ProbMask
from st3.training.machine import Machine
from st3.training.plan import Plan
from st3.training.profiling import peak_memory
from st3.training.state import TrainingState
from st3.training.summary import Summary

FEW = 5
"""Updates of the masks; with fewer a method is hardly at work."""
GUESSING_STEPS = 200
"""Optimizer steps that a loss may stay at that of guessing; an epoch where that is longer."""


def describe_recipe(sketch: Sketch, machine: Machine, execution: Execution) -> str:
    """The resolved recipe, a line per subject."""
    config, facts, plan, processes = sketch.config, sketch.facts, sketch.plan, machine.processes
    model, data = config.model, config.dataset
    options = ", ".join(f"{k} {v:g}" for k in ("depth", "width", "dropout") if (v := getattr(model, k)) is not None)
    eps = f", BatchNorm's ε {model.bn_eps:g}" if model.bn_eps else ""
    splits = [f"{facts.train_images:,} training"]
    splits += [f"{facts.val_images:,} validation"] if facts.val_images else []
    splits += [f"{facts.test_images:,} test images"]
    folders, verbs = folders_used(data), {"val": "validated", "test": "tested"}
    lines = {
        "model": f"{model.name}{f' ({options})' if options else ''}, {data.channels}×{data.image_size}×"
        f"{data.image_size} input, {facts.classes} classes, {model.init} initialization{eps}",
        "weights": _weights(sketch),
        "data": f"{data.name}: {', '.join(splits)}, augmentation {_augmentation(config)}"
        + "".join(f", {verb} on {folders[use]}" for use, verb in verbs.items() if use in folders)
        + (f", tested on images held out of {folders['train']}" if folders and "test" not in folders else ""),
        "method": _method(config),
        "pruned": _pruned(sketch),
        "sparsity": _sparsity(sketch),
        "times": _measured(sketch),
        "masks": _masks(sketch),
        "steps": f"{plan.total_steps:,} optimizer steps: {plan.epochs} epochs of {plan.steps_per_epoch:,}, "
        f"batch {config.batch_size}" + (f" in {plan.accumulate} passes" if plan.accumulate > 1 else ""),
        "optimizer": f"{config.optimizer.name}, {_listed(config.optimizer, without=('lr',))}"
        + (f", gradient clipped to norm {plan.clip_norm:g}" if plan.clip_norm else "")
        + (f", then {config.raw_step.name}: {_listed(config.raw_step)}" if isinstance(config.raw_step, HAM) else ""),
        "rate": _rate(config, plan),
        "loss": "cross-entropy" + (f", label smoothing {plan.label_smoothing:g}" if plan.label_smoothing else ""),
        "precision": f"{machine.precision} on {machine.device}"
        + (f", {processes.world_size} processes" if processes.world_size > 1 else "")
        + (", compiled" if execution.compile else "")
        + (", steps captured" if execution.capture else "")
        + (f", steps not captured ({execution.because})" if execution.because else ""),
        "seed": str(config.seed) + (f"; average of the raw weights with decay {config.ema:g}" if config.ema else ""),
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items() if text)


def describe_layers(rows: Sequence[LayerRow]) -> str:
    """The layer table with a sentence on what it counts."""
    total = totals(rows)
    return (
        f"{format_table(rows)}\n\n{total.prunable:,} prunable weights, {total.macs_dense:,} MACs dense "
        "(multiply-accumulates of Conv2d and Linear layers, batch 1)"
    )


def warnings_before(sketch: Sketch) -> list[str]:
    """What is known before training to make a run less than its name says."""
    warnings, updates = data_warnings(sketch.config.dataset), sketch.sparsifier.mask_updates()
    if sketch.plan.target_sparsity and updates is not None and len(updates) < FEW:
        settings = {field.name for field in fields(sketch.config.method)}
        every = "method.every" if "every" in settings else "schedule.period"
        often = f"change only {_times(len(updates))}" if updates else "never change"
        warnings.append(f"the masks {often}: train longer, or shorten {every}")
    return warnings


def failures(sketch: Sketch, state: TrainingState, dead_layers: Sequence[str]) -> list[str]:
    """What makes the network as it is now worth little, a sentence each, with what to change. `dead_layers` by name."""
    plan, method, found = sketch.plan, sketch.config.method, []
    many = max(GUESSING_STEPS, plan.steps_per_epoch)
    if state.guessing_steps >= many:
        found.append(
            f"the loss has not been below that of guessing (ln {plan.classes} = {math.log(plan.classes):.2f}) for "
            f"{many:,} steps and more: lower optimizer.lr"
        )
    if dead_layers:
        floor = isinstance(method, GlobalThreshold) and not method.min_density
        found.append(
            f"{named(list(dead_layers))} {'is' if len(dead_layers) == 1 else 'are'} wholly zero and "
            f"{'passes' if len(dead_layers) == 1 else 'pass'} nothing on: lower sparsity"
            + (", or set method.min_density=0.01" if floor else "")
        )
    if state.scores.get("test_constant"):
        found.append("the logits are the same for all test images: it has learned nothing, or nothing of that is left")
    return found


def summarize(
    sketch: Sketch, state: TrainingState, data: Data, rows: Sequence[LayerRow], run_dir: Path, machine: Machine
) -> Summary:
    """What summary.json says; sparsity and MACs are counted in the network as it is now."""
    config, total, scores, times = sketch.config, totals(rows), state.scores, sketch.times
    modelled_ms_dense, modelled_ms = times.modelled_ms(rows) if times else (None, None)
    dead_layers = [row.name for row in rows if row.dead]
    updates, warnings = sketch.sparsifier.mask_updates(), [*warnings_before(sketch), *data.warnings(), *state.changes]
    warnings += failures(sketch, state, dead_layers)
    if sketch.sparsifier.sparsity_is_outcome and abs(total.sparsity - config.target_sparsity) > 0.005:
        warnings.append(
            f"{config.method.name} came out at {total.sparsity:.2%}, not at {config.target_sparsity:.2%}: st3 search "
            "finds the setting for it"
        )
    return Summary(
        top1=scores["test_top1"],
        top5=scores["test_top5"],
        val_top1=scores.get("val_top1"),
        val_top5=scores.get("val_top5"),
        sparsity_target=config.target_sparsity,
        target=config.selection.target,
        sparsity=total.sparsity,
        zeros=total.zeros,
        prunable=total.prunable,
        macs_dense=total.macs_dense,
        macs=total.macs,
        modelled_ms_dense=modelled_ms_dense,
        modelled_ms=modelled_ms,
        modelled_from=f"{config.selection.times} ({times.source})" if times else None,
        epochs=state.epoch,
        steps=state.step,
        seconds=round(state.seconds, 2),
        warmup_seconds=round(state.warmup_seconds, 2),
        data_seconds=round(state.data_seconds, 2),
        saving_seconds=round(state.saving_seconds, 2),
        peak_memory_bytes=peak_memory(machine.device),
        processes=machine.processes.world_size,
        method=config.method.name,
        model=config.model.name,
        dataset=config.dataset.name,
        seed=config.seed,
        mask_updates=None if updates is None else len(updates),
        dead_layers=dead_layers,
        constant_logits=scores.get("test_constant", False),
        warnings=warnings,
        best=state.best,
        run_dir=str(run_dir),
        st3=st3.__version__,
    )


def describe_result(result: Summary) -> str:
    """The closing summary."""
    split = "" if result.val_top1 is None else f", validation {result.val_top1:.2f} %"
    target = f" (target {result.sparsity_target:.2%})"
    aim = {name: target if result.target == name else "" for name in ("weights", "flops", "latency")}
    remaining = result.macs / result.macs_dense
    time = ""
    if (removed := result.modelled_removed) is not None:
        time = (
            f"{result.modelled_ms_dense:.4g} ms dense → {result.modelled_ms:.4g} ms in the pruned layers "
            f"({removed:.4%} removed{aim['latency']}), modelled from times of {result.modelled_from}"
        )
    lines = {
        "top-1": f"{result.top1:.2f} % (top-5 {result.top5:.2f} %) on the test images{split}",
        "sparsity": f"{result.sparsity:.4%}{aim['weights']}: {result.zeros:,} of {result.prunable:,} weights are zero",
        "MACs": f"{result.macs_dense:,} dense → {result.macs:,} "
        + (f"({1 - remaining:.4%} removed{target})" if aim["flops"] else f"({remaining:.1%})"),
        "modelled": time,
        "time": f"{result.seconds:.1f} s, {result.epochs} epochs, {result.steps:,} steps; "
        f"warm-up {result.warmup_seconds:.1f} s, waiting for data {result.data_seconds:.1f} s, "
        f"for checkpoints {result.saving_seconds:.1f} s",
        "memory": f"{result.peak_memory_bytes / 1e9:.2f} GB at the peak",
        "run": result.run_dir,
        "next": f"st3 bench {shlex.quote(result.run_dir)} (what its zeros save here), st3 export (ONNX, MNN, …)",
    }
    text = "\n".join(f"{name:<10} {line}" for name, line in lines.items() if line)
    return "\n".join([text, *(f"warning    {warning}" for warning in result.warnings)])


def _weights(sketch: Sketch) -> str:
    if not sketch.start:
        return ""
    parts = [
        "raw weights" if sketch.start.raw else "",
        f"{sketch.sparse_at_start:.2%} zero" if sketch.sparse_at_start else "",
    ]
    parts.append(f"{sketch.head} starts anew, for {sketch.facts.classes} classes" if sketch.head else "")
    return ", ".join(filter(None, [f"from {sketch.start.source}", *parts]))


def _augmentation(config: Config) -> str:
    chosen, crop = config.augmentation, config.dataset.augment
    operations = "1 operation" if chosen.operations == 1 else f"{chosen.operations} operations"
    policy = {
        "none": "",
        "randaugment": f"RandAugment ({operations}, magnitude {chosen.magnitude})",
        "trivialaugment": "TrivialAugment",
    }[chosen.policy]
    erasing = f"erasing {chosen.erasing:g}" if chosen.erasing else ""
    mixing = " or ".join(f"{key} {alpha:g}" for key in ("mixup", "cutmix") if (alpha := getattr(chosen, key)))
    return ", ".join(filter(None, ["" if crop == "none" else crop, policy, erasing, mixing])) or "none"


def _method(config: Config) -> str:
    method = config.method
    if not config.target_sparsity:
        note = f" (sparsity={config.sparsity:g} has no effect)" if config.sparsity else ""
        return f"{method.name}: no weight is pruned{note}"
    held = isinstance(method, GlobalThreshold) and method.min_density
    floor = f"each layer keeps {held:.2%}" if held else ""
    if not isinstance(method, ST3):
        settings = ", ".join(filter(None, [_listed(method, without=("min_density",)), floor]))
        return f"{method.name}: {settings}" if settings else method.name
    parts = [
        f"{method.shrink} threshold" + (f" of exponent {method.exponent:g}" if method.exponent != 1 else ""),
        "rescaled" if method.rescale else "not rescaled",
        "gradient times κ" if method.gradient == "rescaled" else "straight-through gradient",
    ]
    if (theta := method.theta_for(config.target_sparsity)) != 1:
        parts.append(f"times {theta:g} where zeroed")
    if method.dead_channels == "masked":
        parts.append("none for dead channels")
    parts += [floor] if floor else []
    if method.layer_sigma:
        parts.append("magnitudes in units of σ per layer")
    if method.cost_exponent:
        of_one = {"macs": "MACs", "time": "time"}[method.cost]
        parts.append(f"thresholds times ({of_one} of one weight of the layer)^{method.cost_exponent:g}")
    return f"{method.name}: {', '.join(parts)}"


def _listed(settings: Settings, without: Sequence[str] = ()) -> str:
    """Settings in words: every 1%, drop 0.3."""

    def text(value: object) -> str:
        return f"{value:g}" if isinstance(value, float) else str(value)

    values = {field.name: getattr(settings, field.name) for field in fields(settings) if field.name not in without}
    return ", ".join(f"{key.replace('_', ' ')} {text(value)}" for key, value in values.items() if value is not None)


def _pruned(sketch: Sketch) -> str:
    rows, alone = sketch.rows, left_alone(sketch.model)
    others = f"; {', '.join(alone)} {'stays as it is' if len(alone) == 1 else 'stay as they are'}" if alone else ""
    if not sketch.plan.target_sparsity:
        return f"nothing; {totals(rows).prunable:,} weights are prunable{others}"
    left = [row.name for row in rows if not row.pruned]
    text = f"{len(rows) - len(left)} of {len(rows)} Conv and Linear layers, {totals(rows).prunable:,} weights"
    return (f"{text}; dense: {', '.join(left)}" if left else f"{text}; biases and normalisation stay dense") + others


def _sparsity(sketch: Sketch) -> str:
    plan, schedule, target = sketch.plan, sketch.plan.sparsity, f"{sketch.plan.target_sparsity:.2%}"
    what = {"weights": "weights", "flops": "pruned layers' MACs", "latency": "pruned layers' measured time"}[
        sketch.config.selection.target
    ]
    if not plan.target_sparsity:
        return "0 throughout"
    if sketch.sparsifier.sparsity_is_outcome:
        return f"an outcome of its settings, to be compared with {target} of the {what}; st3 search finds those for it"
    if isinstance(schedule, AlternatingPhases):
        return (
            f"0 before step {schedule.start:,}, {target} of the {what} and 0 in turn for {schedule.period:,} steps "
            f"each, 0 from step {schedule.last_dense:,}, {target} from step {schedule.end:,} on"
        )
    if not isinstance(schedule, PolynomialRamp):
        return f"{target} of the {what} from the first step on"
    initial = f"{schedule.initial:.2%}" if schedule.initial else "0"
    return (
        f"{initial} up to step {schedule.start:,} (epoch {schedule.start / plan.steps_per_epoch:.3g}), "
        f"ramp of power {schedule.power:g} to {target} of the {what} at step {schedule.end:,} "
        f"(epoch {schedule.end / plan.steps_per_epoch:.3g}), constant from there"
    )


def _measured(sketch: Sketch) -> str:
    if not sketch.times:
        return ""
    rows = sketch.rows
    dense, _ = sketch.times.modelled_ms(rows)
    _, least = sketch.times.modelled_ms([replace(row, zeros=row.params) for row in rows])
    return (
        f"{sketch.config.selection.times} ({sketch.times.source}): the pruned layers take {dense:.4g} ms dense, "
        f"{least:.4g} ms with all weights zero"
    )


def _masks(sketch: Sketch) -> str:
    plan, updates, method = sketch.plan, sketch.sparsifier.mask_updates(), sketch.config.method
    if not plan.target_sparsity:
        return ""
    fixed = "" if plan.finetune_from is None else f"; fixed from step {plan.finetune_from:,} on"
    if updates is None:
        return f"change in every step that is sparse{fixed}"
    if isinstance(method, ProbMask):
        hard = method.steps("until", plan.length) - 1
        return f"drawn anew in {len(updates):,} steps, hard from step {hard:,} on{fixed}"
    if not updates:
        return f"never change{fixed}"
    first, last = f"{updates[0]:,}", f"{updates[-1]:,}"
    when = f"at step {first}" if len(updates) == 1 else f"first at step {first}, last at step {last}"
    return f"change {_times(len(updates))}, {when}{fixed}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number:,} times"


def _rate(config: Config, plan: Plan) -> str:
    schedule, length = config.lr_schedule, plan.length
    first, last = (plan.lr * plan.lr_schedule.value(step) for step in (0, plan.total_steps - 1))
    text = f"{schedule.name}, peak {plan.lr:g}, first step {first:.3g}, last {last:.3g}"
    if warmup := schedule.warmup.steps(length):
        text += f", warm-up over {warmup:,} steps"
    if isinstance(schedule, MultiStepSettings) and schedule.milestones:
        text += f", ×{schedule.gamma:g} at steps {', '.join(f'{step:,}' for step in schedule.milestone_steps(length))}"
    return text
