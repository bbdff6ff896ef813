"""Where the numbers of a run go beside its own files: TensorBoard, Weights & Biases, MLflow, by their own clients."""

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from st3.errors import UserError
from st3.training.run_directory import RunDirectory
from st3.whole_files import cannot_write

TAGS = {
    "train_loss": "train/loss",
    "lr": "train/lr",
    "images_per_second": "train/images_per_second",
    "sparsity_scheduled": "sparsity/scheduled",
    "sparsity": "sparsity/measured",
    "threshold": "sparsity/threshold",
    "macs": "sparsity/macs",
    "dead_layers": "sparsity/dead_layers",
    "val_top1": "val/top1",
    "val_top5": "val/top5",
    "test_top1": "test/top1",
    "test_top5": "test/top5",
}
"""Columns of metrics.csv and what they are called elsewhere."""
RESULT = {"top1": "result/top1", "sparsity": "result/sparsity", "macs": "result/macs"}
"""Of the summary: what runs are compared by."""


class Logger(Protocol):
    """One such place."""

    def values(self, values: Mapping[str, float], step: int) -> None:
        """Numbers by tag, as they are in optimizer step `step`."""

    def result(self, settings: Mapping[str, Any], result: Mapping[str, float], picture: Path) -> None:
        """Of a finished run: its settings (dotted names), what came out (by tag), and run.png."""

    def close(self) -> None:
        """Nothing comes any more, be the run finished or not."""


def open_loggers(name: str, directory: RunDirectory, settings: Mapping[str, Any], step: int) -> list[Logger]:
    """TensorBoard, whose events lie in the run directory, and what `logger=` names besides.

    `step` is that from which a run goes on.
    """
    loggers: list[Logger] = [TensorBoard(directory, step)]
    if name in EXTRAS:
        loggers.append(EXTRAS[name](directory, settings))
    return loggers


def check_client(name: str) -> None:
    """Raises `UserError` where the client that `logger=` needs is not installed."""
    if name in EXTRAS and find_spec(name) is None:
        raise UserError(f"logger={name} needs its client: pip install 'st3[{name}]'")


class TensorBoard:
    def __init__(self, directory: RunDirectory, step: int):
        self._folder, self._step = directory.path, step
        self._hook = threading.excepthook
        threading.excepthook = self._unless_raised
        with self._on_disk():
            self._writer = SummaryWriter(str(directory.path), purge_step=step + 1)

    def values(self, values: Mapping[str, float], step: int) -> None:
        self._step = step
        with self._on_disk():
            for tag, value in values.items():
                self._writer.add_scalar(tag, value, step)

    def result(self, settings: Mapping[str, Any], result: Mapping[str, float], picture: Path) -> None:
        plain = {key: value if isinstance(value, bool | int | float) else str(value) for key, value in settings.items()}
        for each in hparams(plain, dict(result)):  # SummaryWriter.add_hparams would make a run of its own for them
            self._writer._get_file_writer().add_summary(each)
        self.values(result, self._step)
        self._writer.add_image("run", np.asarray(Image.open(picture).convert("RGB")), self._step, dataformats="HWC")

    def close(self) -> None:
        try:
            with self._on_disk():
                self._writer.close()
        finally:
            threading.excepthook = self._hook

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise cannot_write(self._folder / "events.out.tfevents", error) from error

    def _unless_raised(self, failure: threading.ExceptHookArgs) -> None:
        """TensorBoard's thread prints what the next call here raises."""
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self._hook(failure)


class WandB:
    """Project st3, or what WANDB_PROJECT says; its own variables decide where that is, and WANDB_MODE=offline works."""

    def __init__(self, directory: RunDirectory, settings: Mapping[str, Any]):
        import wandb

        self._image = wandb.Image
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "st3"),
            name=directory.path.name,
            id=directory.logged_as("wandb", lambda: uuid4().hex[:8]),
            resume="allow",
            dir=str(directory.path),
            config=dict(settings),
        )

    def values(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def result(self, settings: Mapping[str, Any], result: Mapping[str, float], picture: Path) -> None:
        self._run.summary.update(dict(result))
        self._run.log({"run": self._image(str(picture))})

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """Experiment st3, or what MLFLOW_EXPERIMENT_NAME says, at MLFLOW_TRACKING_URI."""

    def __init__(self, directory: RunDirectory, settings: Mapping[str, Any]):
        import mlflow

        self._client = mlflow
        if "MLFLOW_EXPERIMENT_NAME" not in os.environ:
            mlflow.set_experiment("st3")

        def begun() -> str:
            with mlflow.start_run(run_name=directory.path.name) as run:
                mlflow.log_params(dict(settings))
            return run.info.run_id

        mlflow.start_run(run_id=directory.logged_as("mlflow", begun))

    def values(self, values: Mapping[str, float], step: int) -> None:
        self._client.log_metrics(dict(values), step=step)

    def result(self, settings: Mapping[str, Any], result: Mapping[str, float], picture: Path) -> None:
        self._client.log_metrics(dict(result))
        self._client.log_artifact(str(picture))

    def close(self) -> None:
        self._client.end_run()


EXTRAS: dict[str, Callable[[RunDirectory, Mapping[str, Any]], Logger]] = {"wandb": WandB, "mlflow": MLflow}
