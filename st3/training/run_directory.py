"""The folder that a run leaves behind: one object knows the names of its files, writes them and reads them."""

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor
from yaml import YAMLError

from st3.errors import UserError
from st3.measure import LayerRow
from st3.training.checkpoints import load_checkpoint, save_checkpoint, save_json, save_network, write_atomically
from st3.training.summary import Summary

METRICS = (
    "epoch",
    "step",
    "train_loss",
    "lr",
    "sparsity_scheduled",
    "sparsity",
    "threshold",
    "macs",
    "dead_layers",
    "val_top1",
    "val_top5",
    "test_top1",
    "test_top5",
    "images_per_second",
)
"""Columns of metrics.csv."""


class RunDirectory:
    """Files of one run under `path`; nothing is written before `start`.

    With `fresh`, `start` makes a new folder: `path`, or path-2 and so on where that is taken.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path, self._fresh = path, fresh

    # Reading. Everything raises `UserError` where a file is damaged.

    def check(self) -> None:
        """Raises `UserError` for a folder that holds something else than a run."""
        if self._fresh:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run_dir={self.path} is a file: choose a folder")
        if not self._file("config.yaml").exists() and self.path.exists() and any(self.path.iterdir()):
            raise UserError(f"run_dir={self.path} holds other files but no run: choose an empty or new folder")

    def started(self) -> bool:
        """Whether a run has begun here; nothing is read, so that a damaged one is found, too."""
        return self._file("config.yaml").is_file() and self._file("overrides.yaml").is_file()

    def config(self) -> dict[str, Any] | None:
        """The settings, as `Config.plain` gave them; None where no run has started."""
        return None if self._fresh else self._yaml("config.yaml", dict)

    def overrides(self) -> list[str]:
        """What was typed."""
        return self._yaml("overrides.yaml", list) or []

    def environment(self) -> dict[str, Any]:
        """See `st3.training.environment`."""
        return self._yaml("environment.yaml", dict) or {}

    def summary(self) -> Summary | None:
        """Of a finished run, or after the last evaluation that was saved."""
        path = self._file("summary.json")
        return Summary.read(path) if not self._fresh and path.exists() else None

    def finished(self) -> Summary | None:
        """The summary of a run that is complete."""
        summary = self.summary()
        return summary if summary and summary.finished else None

    def has_checkpoint(self) -> bool:
        """Whether there is something to continue from."""
        return not self._fresh and self.last.exists()

    def checkpoint(self) -> dict | None:
        """The state after the last finished epoch, on the CPU, if there is one."""
        return load_checkpoint(self.last) if self.has_checkpoint() else None

    def layers(self) -> list[dict[str, str]]:
        """Rows of layers.csv."""
        return _read_csv(self._file("layers.csv"))

    def metrics(self) -> list[dict[str, str]]:
        """Rows of metrics.csv; one that was cut off in writing is left out."""
        path = self._file("metrics.csv")
        return [row for row in _read_csv(path) if None not in row.values()] if path.exists() else []

    def last_step(self) -> int:
        """The optimizer step of the last row of the metrics; 0 where there is none."""
        metrics = self.metrics()
        return int(metrics[-1]["step"]) if metrics else 0

    def evaluations(self) -> list[dict[str, Any]]:
        """What evaluation/*.json hold, in the order of their names; empty where the run was not evaluated again."""
        return [_read_json(path) for path in sorted(self._file("evaluation").glob("*.json"))]

    def benchmark(self) -> dict[str, Any] | None:
        """What bench/bench.json holds; None where the run's network was not timed."""
        path = self._file("bench") / "bench.json"
        return _read_json(path) if path.exists() else None

    # Writing.

    def start(self, config: Mapping[str, Any], overrides: Sequence[str], environment: Mapping[str, Any]) -> None:
        """Create the folder and say what runs here."""
        try:
            self._claim()
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be created ({error.strerror}): choose another") from error
        if done := self.finished():  # it goes on for more epochs
            self.write_summary(replace(done, finished=False))
        self._write_yaml("config.yaml", dict(config))  # first: its presence says that the folder is a run's
        self._write_yaml("overrides.yaml", list(overrides))
        self._write_yaml("environment.yaml", dict(environment))

    def logged_as(self, logger: str, begin: Callable[[], str]) -> str:
        """The name under which a logger knows this run; what `begin()` returns, the first time."""
        known = self._yaml("logged.yaml", dict) or {}
        if logger not in known:
            known[logger] = begin()
            self._write_yaml("logged.yaml", known)
        return known[logger]

    def write_summary(self, summary: Summary) -> None:
        save_json(self._file("summary.json"), summary.plain())

    def write_checkpoint(self, state: dict) -> None:
        save_checkpoint(self.last, state)

    def write_best(self, network: dict) -> None:
        save_checkpoint(self.best, network)

    def write_network(self, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        save_network(self.network, state, metadata)

    def write_layers(self, rows: Iterable[LayerRow]) -> None:
        """One row for each layer."""
        _write_csv(self._file("layers.csv"), [each.name for each in fields(LayerRow)], map(asdict, rows))

    def keep_metrics(self, step: int) -> Path:
        """metrics.csv with its rows up to `step`: a continued run writes the later ones again."""
        kept = [row for row in self.metrics() if int(row["step"]) <= step]
        _write_csv(self._file("metrics.csv"), METRICS, kept)
        return self._file("metrics.csv")

    @property
    def network(self) -> Path:
        """The trained network, once the run is finished."""
        return self._file("model.safetensors")

    @property
    def last(self) -> Path:
        """The state after the last finished epoch."""
        return self._file("last.pt")

    @property
    def best(self) -> Path:
        """The network of the best evaluation at full sparsity, once there is one."""
        return self._file("best.pt")

    @property
    def times(self) -> Path:
        """What `method.times` named when the run began."""
        return self._file("times.json")

    @property
    def trace(self) -> Path:
        """Where profile=true leaves its trace."""
        return self._file("trace.json.gz")

    @property
    def picture(self) -> Path:
        return self._file("run.png")

    def _file(self, name: str) -> Path:
        return self.path / name

    def _claim(self) -> None:
        if not self._fresh:
            self.path.mkdir(parents=True, exist_ok=True)
            return
        first, number = self.path, 1
        while True:  # making it is the test: other runs may start in the same moment
            try:
                self.path.mkdir(parents=True)
            except FileExistsError:
                number += 1
                self.path = first.with_name(f"{first.name}-{number}")
            else:
                self._fresh = False
                return

    def _yaml(self, name: str, kind: type) -> Any:
        path = self._file(name)
        if not path.exists():
            return None
        try:
            content = OmegaConf.to_container(OmegaConf.load(path))
        except (OSError, ValueError, YAMLError) as error:
            raise UserError(f"cannot read {path}: remove the folder, or choose another run_dir") from error
        if not isinstance(content, kind):
            raise UserError(f"cannot read {path}: remove the folder, or choose another run_dir")
        return content

    def _write_yaml(self, name: str, content: Any) -> None:
        text = OmegaConf.to_yaml(OmegaConf.create(content))
        write_atomically(self._file(name), lambda temporary: temporary.write_text(text, encoding="utf-8"))


def _read_csv(path: Path) -> list[dict[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"cannot read {path}: it holds no evaluation")
    return content


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    def write(temporary: Path) -> None:
        with open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    write_atomically(path, write)
