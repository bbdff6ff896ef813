"""The folder that a run leaves behind: one object knows the names of its files, writes them and reads them."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from torch import Tensor

from st3.errors import DamagedError, DiskError, InUseError, UserError
from st3.measure import LayerRow
from st3.plain_files import csv_text, read_csv, read_json, read_yaml
from st3.training.checkpoints import load_checkpoint, save_network
from st3.training.generations import Generation, Generations
from st3.training.lock import Lock
from st3.training.manifest import NAME as MANIFEST
from st3.training.manifest import Manifest
from st3.training.summary import Summary
from st3.whole_files import PARTIAL, save_json, write_atomically, write_text

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


LOCK = ".lock"


class RunDirectory:
    """Files of one run under `path`; nothing is written before `claim`.

    With `fresh`, `claim` makes a new folder: `path`, or path-2 and so on where that is taken.

    A run that is complete has a manifest, which lists its files with their SHA-256; one of an earlier version has none,
    and no checkpoints/ either. Every file is checked against it when it is read.
    """

    def __init__(self, path: Path, fresh: bool = False):
        self.path, self._fresh = path, fresh
        self._made: list[Path] = []
        """Folders that `claim` has made, the inner ones first."""
        self._lock: Lock | None = None
        self._generations = Generations(self._file("checkpoints"))

    # Reading. Everything raises `DamagedError` where a file is damaged.

    def check(self) -> None:
        """Raises `UserError` for a folder that holds something else than a run."""
        if self._fresh:
            return
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run_dir={self.path} is a file: choose a folder")
        if not self._file("config.yaml").exists() and self.path.exists():
            begun = [each for each in self.path.iterdir() if each.name != LOCK and not each.name.endswith(PARTIAL)]
            if begun:
                raise UserError(f"run_dir={self.path} holds other files but no run: choose an empty or new folder")

    def started(self) -> bool:
        """Whether a run has begun here; nothing is read, so that a damaged one is found, too."""
        begun = self._file("config.yaml").is_file() and self._file("overrides.yaml").is_file()
        return begun or self._file(MANIFEST).is_file()

    def damage(self) -> list[str]:
        """What is the matter with the files of a complete run and with its checkpoints, in words. All are read."""
        try:
            manifest = self._manifest()
        except DamagedError as error:
            return [str(error), *self._generations.damage()]
        files = [manifest.damage(name) for name in manifest.entries] if manifest else []
        return [*filter(None, files), *self._generations.damage()]

    def listed(self) -> str:
        """How much of the run can be checked, in words."""
        manifest, states = self._manifest(), len(self._generations.numbers())
        checkpoints = f"{states} checkpoint{'s' * (states != 1)}"
        if manifest:
            return f"complete: {len(manifest.entries)} files and {checkpoints} are what was written"
        return (
            f"not complete: {checkpoints} can be used" if states else "no manifest and no checkpoints, nothing to check"
        )

    def check_files(self) -> None:
        """Raises `DamagedError` where a file of a complete run is not what was written. All of them are read."""
        for name in manifest.entries if (manifest := self._manifest()) else ():
            self.checked(name)

    def checked(self, name: str) -> Path:
        """The file of this name, which is what was written where the run is complete. Raises `DamagedError`."""
        manifest = None if self._fresh else self._manifest()
        if manifest and (trouble := manifest.damage(name)):
            raise DamagedError(
                f"{trouble}. Restore it; or remove {manifest.path}, and st3-train run_dir={self.path} writes all anew "
                "from the last checkpoint"
            )
        return self._file(name)

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
        return Summary.read(self.checked(path.name)) if not self._fresh and path.exists() else None

    def finished(self) -> Summary | None:
        """The summary of a run that is complete."""
        if self._fresh or (self._manifest() is None and self._generations.exist()):
            return None
        self.checked("summary.json")  # which may be gone
        summary = self.summary()
        return summary if summary and summary.finished else None

    def has_checkpoint(self) -> bool:
        """Whether there is something to continue from."""
        return not self._fresh and (self._generations.exist() or self.last.exists())

    def checkpoint(self) -> tuple[Generation | None, list[str]]:
        """The last state that is whole, if there is any, and what is the matter with a later one.

        Raises `DamagedError` where there are some, and none is whole.
        """
        if self._fresh:
            return None, []
        if not self._generations.exist() and self.last.exists():
            state = load_checkpoint(self.last)
            kept = [row for row in self.metrics() if int(row["step"]) <= int(state["step"])]
            return Generation(self.path, state, csv_text(METRICS, kept)), []
        return self._generations.newest()

    def layers(self) -> list[dict[str, str]]:
        """Rows of layers.csv."""
        return read_csv(self.checked("layers.csv"))

    def metrics(self) -> list[dict[str, str]]:
        """Rows of metrics.csv; one that was cut off in writing is left out."""
        path = self.checked("metrics.csv")
        return [row for row in read_csv(path) if None not in row.values()] if path.exists() else []

    def last_step(self) -> int:
        """The optimizer step of the last row of the metrics; 0 where there is none."""
        metrics = self.metrics()
        return int(metrics[-1]["step"]) if metrics else 0

    def evaluations(self) -> list[dict[str, Any]]:
        """What evaluation/*.json hold, in the order of their names; empty where the run was not evaluated again."""
        return [_read_object(path) for path in sorted(self._file("evaluation").glob("*.json"))]

    def benchmark(self) -> dict[str, Any] | None:
        """What bench/bench.json holds; None where the run's network was not timed."""
        path = self._file("bench") / "bench.json"
        return _read_object(path) if path.exists() else None

    def contents(self) -> dict[str, Any] | None:
        """What the images were when the run began; None: a run of an earlier version."""
        path = self.checked("data.json")
        return _read_object(path) if path.exists() else None

    def stopped(self) -> str:
        """Why the run has ended by itself; nothing: it has not."""
        path = self._file("stopped.json")
        return str(_read_object(path).get("reason", "")) if path.exists() else ""

    def user(self) -> str:
        """Who works here, in words; nothing: nobody."""
        if self._fresh or not self._file(LOCK).exists():
            return ""
        try:
            Lock.acquire(self._file(LOCK)).release()
        except InUseError as error:
            return str(error)
        return ""

    # Writing. Everything raises `DiskError`.

    def claim(self) -> None:
        """Make the folder, and lock it until `release`. Raises `InUseError`, or `DiskError` where that cannot be."""
        try:
            self._make()
            self._lock = Lock.acquire(self._file(LOCK))
            for leftover in self.path.glob(f".*{PARTIAL}"):  # of a process that was killed
                leftover.unlink()
        except OSError as error:
            raise DiskError(f"run_dir={self.path} cannot be created ({error.strerror}): choose another") from error

    def release(self) -> None:
        """Unlock the folder; folders that `claim` has made, and in which nothing was written, are removed."""
        if self._lock:
            self._lock.release()
            self._lock = None
        with suppress(OSError):
            for folder in self._made:
                folder.rmdir()

    def start(
        self,
        config: Mapping[str, Any],
        overrides: Sequence[str],
        environment: Mapping[str, Any],
        contents: Mapping[str, Any] | None = None,
    ) -> None:
        """Say what runs here, on images of these `contents`."""
        self._file(MANIFEST).unlink(missing_ok=True)
        if done := self.summary():  # it goes on for more epochs
            self.write_summary(replace(done, finished=False))
        self._write_yaml("config.yaml", dict(config))  # first: its presence says that the folder is a run's
        self._write_yaml("overrides.yaml", list(overrides))
        self._write_yaml("environment.yaml", dict(environment))
        if contents is not None:
            save_json(self._file("data.json"), dict(contents), ascii_only=True)  # names of classes can be any bytes

    def seal(self) -> None:
        """The run is complete: list its files."""
        Manifest.of(self.path, SEALED).write()

    def write_stopped(self, reason: str) -> None:
        save_json(self._file("stopped.json"), {"reason": reason})

    def logged_as(self, logger: str, begin: Callable[[], str]) -> str:
        """The name under which a logger knows this run; what `begin()` returns, the first time."""
        known = self._yaml("logged.yaml", dict) or {}
        if logger not in known:
            known[logger] = begin()
            self._write_yaml("logged.yaml", known)
        return known[logger]

    def write_summary(self, summary: Summary) -> None:
        save_json(self._file("summary.json"), summary.plain())

    def write_checkpoint(self, state: dict, best: dict | None, metrics: str) -> None:
        """`best` None: the best network is still the one of before."""
        written = self._generations.write(state, best, metrics)
        if best is not None and written:
            self._copy(written, self.best)
        self._file("stopped.json").unlink(missing_ok=True)  # it has gone on

    def restore(self, generation: Generation) -> None:
        """Let the files that grow with the run be what they were then."""
        self.write_metrics(generation.metrics)
        if generation.best and generation.best != self.best:
            self._copy(generation.best, self.best)

    def write_metrics(self, content: str) -> Path:
        """All of metrics.csv."""
        path = self._file("metrics.csv")
        write_text(path, content)
        return path

    def write_network(self, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
        save_network(self.network, state, metadata)

    def write_layers(self, rows: Iterable[LayerRow]) -> None:
        """One row for each layer."""
        columns = [each.name for each in fields(LayerRow)]
        write_text(self._file("layers.csv"), csv_text(columns, map(asdict, rows)))

    @property
    def network(self) -> Path:
        """The trained network, once the run is finished. `checked` tells whether it is what was written."""
        return self._file("model.safetensors")

    @property
    def last(self) -> Path:
        """The last state, in a run of an earlier version."""
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

    def _manifest(self) -> Manifest | None:
        return Manifest.read(self.path)

    def _copy(self, source: Path, target: Path) -> None:
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary), source.stat().st_size)

    def _make(self) -> None:
        if not self._fresh:
            self._made = [each for each in (self.path, *self.path.parents) if not each.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            return
        first, number = self.path, 1
        while True:  # making it is the test: other runs may start in the same moment
            made = [each for each in (self.path, *self.path.parents) if not each.exists()]
            try:
                self.path.mkdir(parents=True)
            except FileExistsError:
                number += 1
                self.path = first.with_name(f"{first.name}-{number}")
            else:
                self._fresh, self._made = False, made
                self._generations = Generations(self._file("checkpoints"))
                return

    def _yaml(self, name: str, kind: type) -> Any:
        path = self.checked(name)
        if not path.exists():
            return None
        content = read_yaml(path)
        if not isinstance(content, kind):
            raise DamagedError(f"cannot read {path}: it holds no {kind.__name__}")
        return content

    def _write_yaml(self, name: str, content: Any) -> None:
        write_text(self._file(name), OmegaConf.to_yaml(OmegaConf.create(content)))


SEALED = (
    "config.yaml", "overrides.yaml", "environment.yaml", "data.json", "times.json", "logged.yaml", "metrics.csv",
    "layers.csv", "summary.json", "model.safetensors", "best.pt", "run.png",
)  # fmt: skip
"""Files of a complete run that nothing changes any more."""


def _read_object(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict):
        raise DamagedError(f"cannot read {path}: it is no JSON object")
    return content
