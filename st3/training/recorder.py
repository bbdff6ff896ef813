"""Who is told what happens in the loop: the run directory, TensorBoard, the progress bar."""

import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from typing import Any, Protocol

from tqdm import tqdm

from st3.measure import LayerRow
from st3.training.loggers import TAGS, Logger
from st3.training.plan import Plan
from st3.training.profiling import StepProfiler
from st3.training.run_directory import METRICS, RunDirectory
from st3.training.state import TrainingState, copied
from st3.training.summary import Summary
from st3.whole_files import cannot_write


class Recorder(Protocol):
    """What the loop tells."""

    def progress(self) -> None:
        """One more optimizer step."""

    def row(self, state: TrainingState, row: dict[str, Any]) -> None:
        """Metrics of the steps since the last row."""

    def evaluation(self, state: TrainingState, is_best: bool) -> None:
        """`state.scores` are new."""

    def checkpoint(self, state: TrainingState, content: dict[str, Any]) -> None:
        """To be saved now: `content`, the `state_dict` of all processes."""

    def close(self) -> None:
        """The loop has ended, or was interrupted."""


class RunRecorder:
    """Writes progress bar, metrics.csv, checkpoints, layers.csv and summary.json, and tells the loggers.

    Checkpoints name the `settings` that they were made with. `metrics` is what metrics.csv holds so far.
    `failures(dead_layers)` says what is wrong with the network as it is now; it is printed when it is new.
    """

    def __init__(
        self,
        directory: RunDirectory,
        state: TrainingState,
        plan: Plan,
        loggers: Sequence[Logger],
        *,
        settings: Mapping[str, Any],
        metrics: str = "",
        layer_rows: Callable[[], Sequence[LayerRow]],
        summary: Callable[[], Summary],
        failures: Callable[[Sequence[str]], list[str]],
        profiler: StepProfiler | None = None,
    ):
        self._directory, self._epochs, self._profiler = directory, plan.epochs, profiler
        self._loggers = loggers
        self._layer_rows, self._summary, self._failures = layer_rows, summary, failures
        self._said: set[str] = set()  # names of dead layers, and sentences
        self._state, self._settings = state, settings
        self._best: dict[str, Any] | None = None
        self._disk = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        self._metrics = MetricsFile(directory, metrics)
        self._bar = tqdm(total=plan.total_steps, initial=state.step, unit="step", disable=None, leave=False)

    def progress(self) -> None:
        self._bar.update()
        if self._profiler:
            self._profiler.step()
        if self._writing and self._writing.done():
            self._wait_for_disk()  # which raises what it has met now, and not at the next checkpoint

    def row(self, state: TrainingState, row: dict[str, Any]) -> None:
        self._flush()
        state.row = {"epoch": state.epoch + 1, "step": state.step, **row}
        self._bar.set_postfix_str(f"loss {row['train_loss']:.3f}, sparsity {row['sparsity']:.2%}", refresh=False)
        self._warn(row["dead_layers"])

    def evaluation(self, state: TrainingState, is_best: bool) -> None:
        scores = {name: value for name, value in state.scores.items() if name in METRICS and name != "epoch"}
        state.row |= scores  # an epoch ends with a row, which takes the scores in
        splits = [name.removesuffix("_top1") for name in scores if name.endswith("_top1")]
        top1 = [f"{split} top-1 {scores[f'{split}_top1']:.2f} %" for split in splits]
        self._bar.write(
            f"epoch {state.epoch}/{self._epochs}: loss {state.row['train_loss']:.3f}, {', '.join(top1)}, "
            f"sparsity {state.row['sparsity']:.2%}, {state.row['images_per_second']:,.0f} images/s"
        )
        self._warn(state.row["dead_layers"])
        if is_best:
            self._best = copied({"model": state.network().state_dict(), **state.best})
        self._directory.write_layers(self._layer_rows())
        self._flush()

    def _warn(self, dead_layers: int) -> None:
        dead = [row.name for row in self._layer_rows() if row.dead] if dead_layers else []
        new = self._failures([name for name in dead if name not in self._said])
        for text in new:
            if text not in self._said:
                self._bar.write(f"warning    {text}")
        self._said.update(dead, new)

    def checkpoint(self, state: TrainingState, content: dict[str, Any]) -> None:
        begin = time.perf_counter()
        # Accuracy, zeros and MACs of the same network.
        evaluated = state.scores.get("epoch") == state.epoch
        summary = replace(self._summary(), finished=False) if evaluated else None
        self._wait_for_disk()
        best, self._best = self._best, None
        files = copied(content) | {"settings": self._settings}, best, self._metrics.content
        self._writing = self._disk.submit(self._write_checkpoint, *files, summary)
        state.saving_seconds += time.perf_counter() - begin

    def _write_checkpoint(self, state: dict, best: dict | None, metrics: str, summary: Summary | None) -> None:
        """While the training goes on."""
        self._directory.write_checkpoint(state, best, metrics)
        if summary:
            self._directory.write_summary(summary)

    def _wait_for_disk(self) -> None:
        """Raises what writing has met."""
        writing, self._writing = self._writing, None
        if writing:
            writing.result()

    def close(self) -> None:
        if self._profiler:
            self._profiler.close()
        self._bar.close()
        begin = time.perf_counter()
        self._disk.shutdown()
        self._state.saving_seconds += time.perf_counter() - begin
        self._metrics.close()
        self._wait_for_disk()

    def _flush(self) -> None:
        row, self._state.row = self._state.row, {}
        if row:
            self._metrics.write(row)
            values = {tag: row[name] for name, tag in TAGS.items() if name in row}
            for logger in self._loggers:
                logger.values(values, row["step"])


class MetricsFile:
    """metrics.csv, which grows; and its content."""

    def __init__(self, directory: RunDirectory, content: str):
        self._content = io.StringIO(newline="")
        self._columns = csv.DictWriter(self._content, METRICS, lineterminator="\n")
        self._content.write(content)
        if not content:
            self._columns.writeheader()
        self._path = directory.write_metrics(self.content)
        self._file = open(self._path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed in close)

    @property
    def content(self) -> str:
        return self._content.getvalue()

    def write(self, row: Mapping[str, Any]) -> None:
        """One more. Raises `DiskError`."""
        begin = self._content.tell()
        self._columns.writerow(row)
        try:
            self._file.write(self.content[begin:])
            self._file.flush()
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def close(self) -> None:
        with suppress(OSError):  # of what has been told
            self._file.close()


class SilentRecorder:
    """For the processes that leave writing to the first one."""

    def progress(self) -> None: ...

    def row(self, state: TrainingState, row: dict[str, Any]) -> None: ...

    def evaluation(self, state: TrainingState, is_best: bool) -> None: ...

    def checkpoint(self, state: TrainingState, content: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
