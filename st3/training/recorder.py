"""Who is told what happens in the loop: the run directory, TensorBoard, the progress bar."""

import csv
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
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


class Recorder(Protocol):
    """What the loop tells."""

    def progress(self) -> None:
        """One more optimizer step."""

    def row(self, state: TrainingState, row: dict[str, Any]) -> None:
        """Metrics of the steps since the last row."""

    def evaluation(self, state: TrainingState, is_best: bool) -> None:
        """`state.scores` are new."""

    def checkpoint(self, state: TrainingState) -> None:
        """An epoch is complete."""

    def close(self) -> None:
        """The loop has ended, or was interrupted."""


class RunRecorder:
    """Writes progress bar, metrics.csv, checkpoints, layers.csv and summary.json, and tells the loggers.

    `failures(dead_layers)` says what is wrong with the network as it is now; it is printed when it is new.
    """

    def __init__(
        self,
        directory: RunDirectory,
        state: TrainingState,
        plan: Plan,
        loggers: Sequence[Logger],
        *,
        layer_rows: Callable[[], Sequence[LayerRow]],
        summary: Callable[[], Summary],
        failures: Callable[[Sequence[str]], list[str]],
        profiler: StepProfiler | None = None,
    ):
        self._directory, self._epochs, self._profiler = directory, plan.epochs, profiler
        self._loggers = loggers
        self._layer_rows, self._summary, self._failures = layer_rows, summary, failures
        self._said: set[str] = set()  # names of dead layers, and sentences
        self._row: dict[str, Any] = {}
        self._disk = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[None] | None = None
        path = directory.keep_metrics(state.step)
        self._file = open(path, "a", newline="", encoding="utf-8")  # noqa: SIM115 (closed in close)
        self._writer = csv.DictWriter(self._file, METRICS)
        self._bar = tqdm(total=plan.total_steps, initial=state.step, unit="step", disable=None, leave=False)

    def progress(self) -> None:
        self._bar.update()
        if self._profiler:
            self._profiler.step()

    def row(self, state: TrainingState, row: dict[str, Any]) -> None:
        self._flush()
        self._row = {"epoch": state.epoch + 1, "step": state.step, **row}
        self._bar.set_postfix_str(f"loss {row['train_loss']:.3f}, sparsity {row['sparsity']:.2%}", refresh=False)
        self._warn(row["dead_layers"])

    def evaluation(self, state: TrainingState, is_best: bool) -> None:
        scores = {name: value for name, value in state.scores.items() if name in METRICS and name != "epoch"}
        self._row |= scores  # an epoch ends with a row, which takes the scores in
        splits = [name.removesuffix("_top1") for name in scores if name.endswith("_top1")]
        top1 = [f"{split} top-1 {scores[f'{split}_top1']:.2f} %" for split in splits]
        self._bar.write(
            f"epoch {state.epoch}/{self._epochs}: loss {self._row['train_loss']:.3f}, {', '.join(top1)}, "
            f"sparsity {self._row['sparsity']:.2%}, {self._row['images_per_second']:,.0f} images/s"
        )
        self._warn(self._row["dead_layers"])
        if is_best:
            self._directory.write_best({"model": state.network().state_dict(), **state.best})
        self._directory.write_layers(self._layer_rows())

    def _warn(self, dead_layers: int) -> None:
        dead = [row.name for row in self._layer_rows() if row.dead] if dead_layers else []
        new = self._failures([name for name in dead if name not in self._said])
        for text in new:
            if text not in self._said:
                self._bar.write(f"warning    {text}")
        self._said.update(dead, new)

    def checkpoint(self, state: TrainingState) -> None:
        self._flush()
        # Accuracy, zeros and MACs of the same network.
        summary = replace(self._summary(), finished=False) if state.scores.get("epoch") == state.epoch else None
        self._wait_for_disk()
        self._writing = self._disk.submit(self._write_checkpoint, copied(state.state_dict()), summary)

    def _write_checkpoint(self, state: dict[str, Any], summary: Summary | None) -> None:
        """While the training goes on."""
        self._directory.write_checkpoint(state)
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
        self._flush()
        self._file.close()
        self._disk.shutdown()
        self._wait_for_disk()

    def _flush(self) -> None:
        row, self._row = self._row, {}
        if row:
            self._writer.writerow(row)
            self._file.flush()
            values = {tag: row[name] for name, tag in TAGS.items() if name in row}
            for logger in self._loggers:
                logger.values(values, row["step"])


class SilentRecorder:
    """For the processes that leave writing to the first one."""

    def progress(self) -> None: ...

    def row(self, state: TrainingState, row: dict[str, Any]) -> None: ...

    def evaluation(self, state: TrainingState, is_best: bool) -> None: ...

    def checkpoint(self, state: TrainingState) -> None: ...

    def close(self) -> None: ...
