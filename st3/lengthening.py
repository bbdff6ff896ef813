"""A run that goes on for more epochs than it was begun with."""

from st3.config import Config
from st3.durations import Duration
from st3.errors import UserError
from st3.settings import hints
from st3.sketch import Sketch, make_plan


def refuse_other_past(run: Sketch, before: Config, done: int) -> None:
    """Raises `UserError` where the first `done` optimizer steps of `run` would not have been those of the same run with
    fewer epochs, whose settings are `before`: its past cannot be changed.
    """
    old, new = make_plan(before, run.facts, sparse_at_start=run.sparse_at_start), run.plan
    for setting, ours, theirs in (
        (f"lr_schedule={run.config.lr_schedule.name}", new.lr_schedule, old.lr_schedule),
        (f"schedule={run.config.schedule.name}", new.sparsity, old.sparsity),
    ):
        differs = next((step for step in range(done) if ours.value(step) != theirs.value(step)), None)
        if differs is not None:
            raise _refused(run, before, f"{setting} would have been another from step {differs:,} on")
    method = run.config.method
    for key in (key for key, kind in hints(type(method)).items() if kind is Duration):
        if method.steps(key, new.length) != method.steps(key, old.length):
            raise _refused(run, before, f"method.{key}={getattr(method, key)} would have been another duration")
    if old.finetune_from is not None and old.finetune_from < done:
        raise _refused(run, before, "its masks are fixed already")


def _refused(run: Sketch, before: Config, reason: str) -> UserError:
    path = run.config.run_dir
    return UserError(
        f"epochs={run.config.epochs} cannot lengthen run_dir={path}, which has {before.epochs}: {reason}. Start a new "
        f"run from it with model.weights={path}"
    )
