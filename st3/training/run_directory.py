"""The folder that a run leaves behind, and the listener that fills it."""

import csv
import json
import platform
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path

import torch
import torchvision
from omegaconf import OmegaConf
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from yaml import YAMLError

from st3.errors import UserError
from st3.measure import LayerRow
from st3.training.checkpoints import load_checkpoint, save_checkpoint, save_json, write_atomically
from st3.training.distributed import SINGLE, Processes
from st3.training.profiling import StepProfiler
from st3.training.state import TrainingState

METRICS = (
    "epoch",
    "step",
    "train_loss",
    "lr",
    "sparsity_scheduled",
    "sparsity",
    "threshold",
    "macs",
    "val_top1",
    "val_top5",
    "test_top1",
    "test_top5",
    "images_per_second",
)
"""Columns of metrics.csv and tags of the TensorBoard events."""

# Settings that may differ when a run is continued: they change where and how it runs, not what it computes.
_FREE = {"run_dir", "dry_run", "device", "compile", "capture", "profile", "log_every"}
_FREE |= {f"dataset.{name}" for name in ("root", "workers", "download", "cache")}


class RunDirectory:
    """Files of one run under `path`; nothing is written before `start`.

    With `fresh`, `path` is only a wish: `start` makes a folder that no other run has, path-2 if need be.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path, self._fresh = path, fresh

    def check(self, config: Mapping) -> None:
        """Refuse, with a `UserError`, a folder that holds something else than an earlier part of this run."""
        if self._fresh:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run_dir={self.path} is a file: choose a folder")
        stored = self.path / "config.yaml"
        if not stored.exists():
            if self.path.exists() and any(self.path.iterdir()):
                raise UserError(f"run_dir={self.path} holds other files but no run: choose an empty or new folder")
            return
        try:
            theirs, ours = _flat(OmegaConf.to_container(OmegaConf.load(stored))), _flat(config)
        except (OSError, ValueError, AttributeError, YAMLError) as error:
            raise UserError(f"cannot read {stored}: remove the folder, or choose another run_dir") from error
        for key in sorted((theirs.keys() | ours.keys()) - _FREE):
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"run_dir={self.path} holds a run with {key}={theirs.get(key)}, not {ours.get(key)}: "
                    "choose another run_dir, or give the same settings to continue it"
                )

    def finished(self) -> dict | None:
        """The summary of a run that is complete."""
        summary = self.path / "summary.json"
        if self._fresh or not summary.exists():
            return None
        content = json.loads(summary.read_text(encoding="utf-8"))
        return content if content["finished"] else None

    def checkpoint(self) -> dict | None:
        """What `last.pt` holds, on the CPU, if there is one."""
        last = self.path / "last.pt"
        return load_checkpoint(last) if not self._fresh and last.exists() else None

    def start(self, config: Mapping, overrides: list[str], environment: Mapping) -> None:
        """Create the folder and say what runs here."""
        try:
            self._claim()
        except OSError as error:
            raise UserError(f"run_dir={self.path} cannot be created ({error.strerror}): choose another") from error
        self._write_yaml("config.yaml", config)  # first: its presence says that the folder is a run's
        self._write_yaml("overrides.yaml", overrides)
        self._write_yaml("environment.yaml", dict(environment))

    def _claim(self) -> None:
        if not self._fresh:
            self.path.mkdir(parents=True, exist_ok=True)
            return
        wish, number = self.path, 1
        while True:  # making it is the test: other runs may start in the same moment
            try:
                self.path.mkdir(parents=True)
            except FileExistsError:
                number += 1
                self.path = wish.with_name(f"{wish.name}-{number}")
            else:
                return

    def _write_yaml(self, name: str, content: object) -> None:
        text = OmegaConf.to_yaml(OmegaConf.create(content))
        write_atomically(self.path / name, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def write_layers(self, rows: Iterable[LayerRow]) -> None:
        """layers.csv: one row for each Conv2d and Linear layer."""

        def write(temporary: Path) -> None:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, [f.name for f in fields(LayerRow)])
                writer.writeheader()
                writer.writerows(asdict(row) for row in rows)

        write_atomically(self.path / "layers.csv", write)


class RunRecorder:
    """Listens to the loop: progress bar, metrics.csv, TensorBoard, checkpoints, layers.csv, summary.json."""

    def __init__(
        self,
        directory: RunDirectory,
        state: TrainingState,
        *,
        total_steps: int,
        epochs: int,
        layer_rows: Callable[[], list[LayerRow]],
        summary: Callable[[], dict],
        profiler: StepProfiler | None = None,
    ):
        self._directory, self._epochs, self._profiler = directory, epochs, profiler
        self._layer_rows, self._summary = layer_rows, summary
        self._row: dict = {}
        self._open_metrics(state.step)
        self._events = SummaryWriter(str(directory.path), purge_step=state.step + 1)
        self._bar = tqdm(total=total_steps, initial=state.step, unit="step", disable=None, leave=False)

    def progress(self) -> None:
        self._bar.update()
        if self._profiler:
            self._profiler.step()

    def row(self, state: TrainingState, row: dict) -> None:
        self._flush()
        self._row = {"epoch": state.epoch + 1, "step": state.step, **row}
        self._bar.set_postfix_str(f"loss {row['train_loss']:.3f}, sparsity {row['sparsity']:.2%}", refresh=False)

    def evaluation(self, state: TrainingState, is_best: bool) -> None:
        scores = {name: value for name, value in state.scores.items() if name != "epoch"}
        self._row |= scores  # an epoch ends with a row, which takes the scores in
        splits = [name.removesuffix("_top1") for name in scores if name.endswith("_top1")]
        top1 = [f"{split} top-1 {scores[f'{split}_top1']:.2f} %" for split in splits]
        self._bar.write(
            f"epoch {state.epoch}/{self._epochs}: loss {self._row['train_loss']:.3f}, {', '.join(top1)}, "
            f"sparsity {self._row['sparsity']:.2%}, {self._row['images_per_second']:,.0f} images/s"
        )
        if is_best:
            best = {"model": state.network().state_dict(), **state.best}
            save_checkpoint(self._directory.path / "best.pt", best)
        self._directory.write_layers(self._layer_rows())

    def checkpoint(self, state: TrainingState) -> None:
        self._flush()
        save_checkpoint(self._directory.path / "last.pt", state.state_dict())
        if state.scores.get("epoch") == state.epoch:  # accuracy, zeros and MACs of the same network
            save_json(self._directory.path / "summary.json", self._summary() | {"finished": False})

    def close(self) -> None:
        if self._profiler:
            self._profiler.close()
        self._bar.close()
        self._flush()
        self._file.close()
        self._events.close()

    def _open_metrics(self, step: int) -> None:
        """Keep the rows up to `step`: a continued run writes the later ones again."""
        path = self._directory.path / "metrics.csv"
        kept = []
        if path.exists():
            with open(path, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.DictReader(file) if None not in row.values()]  # the last may be torn
            kept = [row for row in rows if int(row["step"]) <= step]

        def write(temporary: Path) -> None:
            with open(temporary, "w", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, METRICS)
                writer.writeheader()
                writer.writerows(kept)

        write_atomically(path, write)
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._writer = csv.DictWriter(self._file, METRICS)

    def _flush(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._writer.writerow(row)
            self._file.flush()
        for name in row.keys() - {"epoch", "step"}:
            self._events.add_scalar(name, row[name], row["step"])


class SilentRecorder:
    """For the processes that leave listening to the first one."""

    def progress(self) -> None: ...

    def row(self, state: TrainingState, row: dict) -> None: ...

    def evaluation(self, state: TrainingState, is_best: bool) -> None: ...

    def checkpoint(self, state: TrainingState) -> None: ...

    def close(self) -> None: ...


def environment(device: torch.device, version: str, processes: Processes = SINGLE) -> dict:
    """Versions, devices and the state of the git project in the current folder, if it is one."""
    return {
        "st3": version,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "processes": processes.world_size,
        "cpu_threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "git": _git_state(),
    }


def _git_state() -> dict | None:
    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "changed_files": len(git("status", "--porcelain").splitlines())}
    except (OSError, subprocess.SubprocessError):
        return None


def _flat(config: Mapping, prefix: str = "") -> dict:
    flat = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
