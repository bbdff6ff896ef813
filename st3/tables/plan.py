"""Which runs a table needs, and what they cost."""

import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

from st3.compose import compose_config
from st3.errors import UserError
from st3.report.table import Row, check_override
from st3.sketch import Sketch, sketch


@dataclass(frozen=True)
class Task:
    """One run."""

    name: str
    overrides: tuple[str, ...]
    """All that st3-train is told."""
    run_dir: Path
    sketch: Sketch | UserError = field(repr=False)
    """What the overrides mean, or what is wrong with them."""

    @classmethod
    def make(
        cls, name: str, overrides: Sequence[str], run_dir: Path, known: Sketch | UserError | None = None
    ) -> "Task":
        """With the run directory among the overrides. `known` saves the time to sketch the same run again."""
        told = (*overrides, f"run_dir={_quoted(run_dir)}")
        return cls(name, told, run_dir, known or sketch_or_error(overrides))

    def checked(self) -> Sketch:
        """What the overrides mean. Raises the `UserError` that says what is wrong with them."""
        if isinstance(self.sketch, UserError):
            raise self.sketch
        return self.sketch

    @property
    def command(self) -> str:
        """As it can be typed."""
        return shlex.join(["python", "-m", "st3.train", *self.overrides])

    @property
    def log(self) -> Path:
        """What the training prints."""
        return self.run_dir.with_name(f"{self.run_dir.name}.log")


def chosen(rows: Sequence[Row], patterns: Sequence[str] | None) -> list[Row]:
    """The rows that a shell pattern matches, in the order of the table; all without patterns. Case does not matter.

    Raises `UserError` for a pattern that matches none.
    """
    if patterns is None:
        return list(rows)
    for pattern in patterns:
        if not any(fnmatchcase(row.slug, pattern.lower()) for row in rows):
            raise UserError(f"--rows {pattern} is none of {', '.join(row.slug for row in rows)}")
    return [row for row in rows if any(fnmatchcase(row.slug, pattern.lower()) for pattern in patterns)]


def plan(rows: Sequence[Row], extra: Sequence[str], seeds: Sequence[int], out: Path) -> list[Task]:
    """A task for each row and seed, with the overrides `extra`. Seed by seed, so that all rows have one run early.

    Raises `UserError` when no row can be run with `extra`.
    """
    for override in extra:
        check_override("overrides", override)
        if override.lstrip("+~").partition("=")[0] == "sparsity":
            raise UserError(f"{override}: write the points of the table")
    sketches = {row: sketch_or_error([*row.overrides, *extra]) for row in rows}
    errors = [each for each in sketches.values() if isinstance(each, UserError)]
    if errors and len(errors) == len(sketches):
        raise errors[0]
    tasks = []
    for seed in seeds:
        for row, known in sketches.items():  # which differ between seeds by nothing but the seed
            if isinstance(known, Sketch):
                known = replace(known, config=replace(known.config, seed=seed))
            overrides = (*row.overrides, *extra, f"seed={seed}")
            tasks.append(Task.make(f"{row.name}, seed {seed}", overrides, out / f"{row.slug}-s{seed}", known))
    return tasks


def sketch_or_error(overrides: Sequence[str]) -> Sketch | UserError:
    """What st3-train would do with the overrides, or what it would complain about."""
    try:
        return sketch(compose_config(overrides))
    except UserError as error:
        return error


def _quoted(path: Path) -> str:
    """For Hydra, to whose grammar of overrides many characters mean something."""
    if re.fullmatch(r"[\w./-]+", str(path), re.ASCII):
        return str(path)
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


# What it costs --------------------------------------------------------------------------------------------------------


def training_macs(run: Sketch) -> int:
    """MACs of the dense network for each image that is trained on, once for the forward pass, twice for the backward
    pass."""
    return 3 * sum(run.macs.values()) * _images(run)


def describe_cost(tasks: Sequence[Task], images_per_second: float | None) -> str:
    """In MACs, and in hours where a rate is given."""
    runs = [task.sketch for task in tasks if isinstance(task.sketch, Sketch)]
    text = f"{with_prefix(sum(map(training_macs, runs)))}MACs"
    if images_per_second:
        text += f", {sum(map(_images, runs)) / images_per_second / 3600:.3g} h at {images_per_second:g} images/s"
    return text


def with_prefix(number: int) -> str:
    """Three digits and an SI prefix: 27.5 tera."""
    prefixes = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta")
    rounded = float(f"{number:.2e}")
    power = min(int(math.log10(rounded)) // 3, len(prefixes) - 1) if rounded >= 1 else 0
    return f"{rounded / 1000**power:.3g} {prefixes[power]}"


def _images(run: Sketch) -> int:
    """Training images that pass through the network, in all epochs."""
    return run.facts.train_images * run.config.epochs
