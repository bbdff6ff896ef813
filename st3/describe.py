"""A run in words: what will be done, and what came out."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

import st3
from st3.build import Execution, Facts
from st3.config import Config
from st3.data import folders_used
from st3.measure import LayerRow, format_table, totals
from st3.sparsify import ST3, AlternatingPhases, PolynomialRamp
from st3.sparsify.methods.probmask import ProbMask
from st3.training.distributed import Processes
from st3.training.plan import Plan
from st3.training.precision import Precision
from st3.training.profiling import peak_memory
from st3.training.state import TrainingState


def describe_recipe(
    config: Config,
    facts: Facts,
    plan: Plan,
    precision: Precision,
    execution: Execution,
    processes: Processes,
    method: object,
    rows: Sequence[LayerRow],
) -> str:
    """The resolved recipe, a line per subject."""
    model, data, optimizer = config.model, config.dataset, config.optimizer
    options = ", ".join(f"{k} {v:g}" for k in ("depth", "width", "dropout") if (v := getattr(model, k)) is not None)
    splits = [f"{facts.train_images:,} training"]
    splits += [f"{facts.val_images:,} validation"] if facts.val_images else []
    splits += [f"{facts.test_images:,} test images"]
    folders, verbs = folders_used(data.name, data.root), {"val": "validated", "test": "tested"}
    lines = {
        "model": f"{model.name}{f' ({options})' if options else ''}, {data.channels}×{data.image_size}×"
        f"{data.image_size} input, {facts.classes} classes, {model.init} initialization",
        "data": f"{data.name}: {', '.join(splits)}, augmentation {data.augment}"
        + "".join(f", {verb} on {folders[use]}" for use, verb in verbs.items() if use in folders),
        "method": _method(config, method),
        "pruned": _pruned(config, rows),
        "sparsity": _sparsity(config, plan)
        + (f"; masks are hard from step {method.until - 1:,} on" if isinstance(method, ProbMask) else ""),
        "steps": f"{plan.total_steps:,} optimizer steps: {plan.epochs} epochs of {plan.steps_per_epoch:,}, "
        f"batch {config.batch_size}" + (f" in {plan.accumulate} passes" if plan.accumulate > 1 else ""),
        "optimizer": f"{optimizer.name}, weight decay {optimizer.weight_decay:g} on Conv and Linear weights"
        + "".join(
            f", {key} {value}"
            for key in ("momentum", "nesterov", "betas", "eps")
            if (value := getattr(optimizer, key)) is not None
        )
        + (f", gradient clipped to norm {plan.clip_norm:g}" if plan.clip_norm else ""),
        "rate": _rate(config, plan),
        "loss": "cross-entropy" + (f", label smoothing {plan.label_smoothing:g}" if plan.label_smoothing else ""),
        "precision": f"{precision.name} on {precision.device}"
        + (f", {processes.world_size} processes" if processes.world_size > 1 else "")
        + (", compiled" if execution.compile else "")
        + (", steps captured" if execution.capture else "")
        + (f", steps not captured ({execution.because})" if execution.because else ""),
        "seed": str(config.seed) + (f"; average of the raw weights with decay {config.ema:g}" if config.ema else ""),
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def describe_layers(rows: Sequence[LayerRow]) -> str:
    """The layer table with a sentence on what it counts."""
    total = totals(rows)
    return (
        f"{format_table(rows)}\n\n{total.prunable:,} prunable weights, {total.macs_dense:,} MACs dense "
        "(multiply-accumulates of Conv2d and Linear layers, batch 1)"
    )


def summarize(
    config: Config, state: TrainingState, rows: list, run_dir: Path, device: torch.device, processes: Processes
) -> dict:
    """What summary.json says; sparsity and MACs are counted in the network as it is now."""
    total = totals(rows)
    scores = state.scores
    return {
        "top1": scores["test_top1"],
        "top5": scores["test_top5"],
        **{name: value for name, value in scores.items() if name.startswith("val_")},
        "sparsity_target": config.target_sparsity,
        "target": config.method.target,
        "sparsity": total.sparsity,
        "zeros": total.zeros,
        "prunable": total.prunable,
        "macs_dense": total.macs_dense,
        "macs": total.macs,
        "epochs": state.epoch,
        "steps": state.step,
        "seconds": round(state.seconds, 2),
        "warmup_seconds": round(state.warmup_seconds, 2),
        "data_seconds": round(state.data_seconds, 2),
        "peak_memory_bytes": peak_memory(device),
        "processes": processes.world_size,
        "method": config.method.name,
        "model": config.model.name,
        "dataset": config.dataset.name,
        "seed": config.seed,
        "best": state.best,
        "run_dir": str(run_dir),
        "st3": st3.__version__,
    }


def describe_result(summary: dict) -> str:
    """The closing summary."""
    split = "" if "val_top1" not in summary else f", validation {summary['val_top1']:.2f} %"
    target = f" (target {summary['sparsity_target']:.2%})"
    of_macs = summary["target"] == "flops"
    lines = {
        "top-1": f"{summary['top1']:.2f} % (top-5 {summary['top5']:.2f} %) on the test images{split}",
        "sparsity": f"{summary['sparsity']:.4%}{'' if of_macs else target}: "
        f"{summary['zeros']:,} of {summary['prunable']:,} weights are zero",
        "MACs": f"{summary['macs_dense']:,} dense → {summary['macs']:,} "
        + (
            f"({1 - summary['macs'] / summary['macs_dense']:.4%} removed{target})"
            if of_macs
            else f"({summary['macs'] / summary['macs_dense']:.1%})"
        ),
        "time": f"{summary['seconds']:.1f} s, {summary['epochs']} epochs, {summary['steps']:,} steps; "
        f"warm-up {summary['warmup_seconds']:.1f} s, waiting for data {summary['data_seconds']:.1f} s",
        "memory": f"{summary['peak_memory_bytes'] / 1e9:.2f} GB at the peak",
        "run": f"{summary['run_dir']}",
    }
    return "\n".join(f"{name:<10} {text}" for name, text in lines.items())


def _method(config: Config, method: object) -> str:
    name = config.method.name
    if name == "dense":
        note = f" (sparsity={config.sparsity:g} has no effect)" if config.sparsity else ""
        return f"dense: no weight is pruned{note}"
    if not isinstance(method, ST3):
        settings = ", ".join(f"{key} {value}" for key, value in asdict(method).items() if value is not None)
        return f"{name}: {settings}" if settings else name
    scale = ", magnitudes in units of σ per layer" if method.layer_sigma else ""
    return (
        f"{name}: {method.shrink} threshold{', rescaled' if method.rescale else ', not rescaled'}, "
        f"{method.gradient.replace('_', '-')} gradient{scale}"
    )


def _pruned(config: Config, rows: Sequence[LayerRow]) -> str:
    if config.method.name == "dense":
        return f"nothing; {totals(rows).prunable:,} weights are prunable"
    left = [row.name for row in rows if not row.pruned]
    text = f"{len(rows) - len(left)} of {len(rows)} Conv and Linear layers, {totals(rows).prunable:,} weights"
    return f"{text}; dense: {', '.join(left)}" if left else f"{text}; biases and normalisation stay dense"


def _sparsity(config: Config, plan: Plan) -> str:
    schedule, target = plan.sparsity, f"{plan.target_sparsity:.2%}"
    what = "pruned layers' MACs" if config.method.target == "flops" else "weights"
    if config.method.name == "dense":
        return "0 throughout"
    if isinstance(schedule, AlternatingPhases):
        return (
            f"0 up to step {schedule.start:,}, {target} of the {what} and 0 in turn for {schedule.period:,} steps "
            f"each, 0 from step {schedule.last_dense:,}, {target} from step {schedule.end:,} on"
        )
    if not isinstance(schedule, PolynomialRamp):
        return f"{target} of the {what} from the first step on"
    return (
        f"0 up to step {schedule.start:,} (epoch {schedule.start / plan.steps_per_epoch:.3g}), "
        f"ramp of power {schedule.power:g} to {target} of the {what} at step {schedule.end:,} "
        f"(epoch {schedule.end / plan.steps_per_epoch:.3g}), constant from there"
    )


def _rate(config: Config, plan: Plan) -> str:
    schedule = config.lr_schedule
    first, last = (plan.lr * plan.lr_schedule.value(step) for step in (0, plan.total_steps - 1))
    warmup = getattr(plan.lr_schedule, "warmup", 0)
    text = f"{schedule.name}, peak {plan.lr:g}, first step {first:.3g}, last {last:.3g}"
    if warmup:
        text += f", warm-up over {warmup:,} steps"
    if schedule.milestones:
        text += f", ×{schedule.gamma:g} at steps {', '.join(f'{m:,}' for m in plan.lr_schedule.milestones)}"
    return text
