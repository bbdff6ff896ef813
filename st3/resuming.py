"""A run that goes on: whether it may, from where, and what is another since then."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from st3.config import MENDING, Config, differing, refuse_other, stored_config
from st3.data import Data, contents, contents_changes
from st3.errors import DamagedError, DataError, UserError
from st3.lengthening import refuse_other_past
from st3.measure import Times
from st3.sketch import Sketch
from st3.training.distributed import Processes
from st3.training.generations import Generation
from st3.training.loop import evaluation_is_due
from st3.training.run_directory import METRICS, RunDirectory
from st3.training.state import TrainingState
from st3.training.summary import Summary

_DECIDING = "torch", "device", "precision", "cpu_threads", "cpu_capability"
"""What of an environment decides how numbers are rounded."""


@dataclass
class Resumed:
    """What a training goes on with, beside its state."""

    metrics: str = ""
    """Content of metrics.csv so far."""
    lines: list[str] = field(default_factory=list)
    """What is to be said."""


def earlier_result(directory: RunDirectory, plan: Sketch) -> Summary | None:
    """The summary of this run where it is finished, and all its files are what was written.

    Raises `UserError` for a folder that holds something else, or a shorter run that cannot be lengthened;
    `DamagedError` for damaged files; `DataError` where its images are said to be elsewhere, and others are there.
    """
    directory.check()
    if stored := directory.config():
        mending = MENDING if directory.stopped() else frozenset()
        before = refuse_other(stored, plan.config, directory.path, but_for=mending)
        refuse_other_times(directory, plan)
        if before.epochs != plan.config.epochs:
            refuse_other_past(plan, before, directory.last_step())
            return None
    done = directory.finished()
    if done:
        directory.check_files()
        if stored and plan.config.dataset.root != before.dataset.root:
            _changes_of_data(directory, plan.config, contents(plan.config.dataset, plan.config.seed))
    return done


def resume(
    directory: RunDirectory,
    plan: Sketch,
    state: TrainingState,
    data: Data,
    processes: Processes,
    environment: Mapping[str, Any],
) -> Resumed:
    """Put the last state of the run into `state`, if there is one. All processes take part.

    Raises `DamagedError` for a checkpoint that cannot be used, `DataError` where the images are no longer what they
    were, `UserError` where there were more or fewer processes.
    """
    generation, damaged = processes.from_main(directory.checkpoint)
    changes = processes.from_main(lambda: _changes_of_data(directory, plan.config, data.contents) if generation else [])
    if generation is None:
        return Resumed()
    saved = generation.state
    try:
        state.load_state_dict(saved, processes)
    except UserError as error:
        raise type(error)(f"cannot continue from {generation.folder}: {error}") from error
    _check_position(generation, state, plan)
    _check_metrics(generation)
    changes += _changes_of_settings(generation, plan.config)
    state.changes += [f"{each} after step {state.step:,}" for each in changes]
    processes.on_main(lambda: directory.restore(generation))
    lines = [f"warning    {each}: going on from the checkpoint before" for each in damaged]
    done = state.step - state.epoch * plan.plan.steps_per_epoch
    lines.append(
        f"continuing {directory.path} after epoch {state.epoch}"
        + (f", step {done:,} of {plan.plan.steps_per_epoch:,}" if done else "")
    )
    lines += [f"warning    {each}" for each in changes]
    before = processes.from_main(directory.environment)
    if others := [f"{key} {before[key]}" for key in _DECIDING if before.get(key, environment[key]) != environment[key]]:
        lines.append(f"warning    rounding may be another from here on: before, it ran with {', '.join(others)}")
    return Resumed(generation.metrics, lines)


def _check_position(generation: Generation, state: TrainingState, plan: Sketch) -> None:
    per_epoch = plan.plan.steps_per_epoch
    if not (0 <= state.step - state.epoch * per_epoch <= per_epoch and state.epoch <= plan.plan.epochs):
        raise DamagedError(
            f"cannot continue from {generation.folder}: epoch {state.epoch}, step {state.step} is none of a training "
            f"of {plan.plan.epochs} epochs of {per_epoch} steps"
        )
    if evaluation_is_due(state, plan.plan) and not state.row:
        raise DamagedError(f"cannot continue from {generation.folder}: it lacks what its last epoch has measured")


def _check_metrics(generation: Generation) -> None:
    """Rows are written below them, and a picture is drawn of all."""
    header, *rows = generation.metrics.splitlines() or [",".join(METRICS)]
    try:
        if header != ",".join(METRICS):
            raise ValueError("columns")
        for row in rows:
            for _, cell in zip(METRICS, row.split(","), strict=True):
                float(cell or 0)
    except ValueError as error:
        raise DamagedError(
            f"cannot continue from {generation.folder}: its metrics.csv is not that of a run; remove the folder to go "
            "on from the checkpoint before"
        ) from error


def _changes_of_settings(generation: Generation, config: Config) -> list[str]:
    """Of those that may change after a loss that was not finite. Raises `DamagedError` where others have."""
    stored = generation.state.get("settings")
    if not isinstance(stored, dict):  # earlier versions did not save them
        return []
    changed = differing(stored_config(stored, generation.folder), config)
    if others := sorted(changed.keys() - MENDING - {"epochs"}):
        raise DamagedError(
            f"{generation.folder} was saved with other settings than config.yaml has now ({', '.join(others)})"
        )
    return [f"{key} was changed from {before} to {now}" for key, (before, now) in changed.items() if key in MENDING]


def _changes_of_data(directory: RunDirectory, config: Config, now: Mapping[str, Any]) -> list[str]:
    """In words. Raises `DataError` where they are not accepted."""
    before = directory.contents()  # which earlier versions did not keep
    changes = contents_changes(before, now) if before else []
    if changes and config.dataset.changed == "stop":
        raise DataError(
            f"the images of {directory.path} are no longer those that it began with: {'; '.join(changes)}. Restore "
            "them, or go on with dataset.changed=accept"
        )
    return [f"images were changed: {each}" for each in changes]


def refuse_other_times(directory: RunDirectory, plan: Sketch) -> None:
    """Raises `UserError` where the file of times is no longer what it was when the run began."""
    if plan.times and directory.times.exists() and Times.read(directory.times) != plan.times:
        raise UserError(
            f"run_dir={directory.path} holds a run with other times than method.times={plan.config.selection.times} "
            f"has now: choose another run_dir, or restore them from {directory.times}"
        )
