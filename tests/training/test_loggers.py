"""Where else the numbers of a run go: what TensorBoard, Weights & Biases and MLflow have of it, each offline."""

import numpy as np
import pytest
from command_cases import TINY, refused, st3_train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from st3.training import loggers
from st3.training.recorder import RunRecorder
from st3.training.run_directory import RunDirectory


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """The clients write below this folder only."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "WANDB_MODE": "offline", "WANDB_SILENT": "true", "MLFLOW_TRACKING_URI": f"file:{tmp_path / 'mlruns'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path


def after_an_epoch(monkeypatch) -> None:
    """The next run is interrupted when its first epoch is complete."""
    original = RunRecorder.checkpoint

    def checkpoint(self, state, content):
        original(self, state, content)
        monkeypatch.setattr(RunRecorder, "checkpoint", original)
        raise KeyboardInterrupt

    monkeypatch.setattr(RunRecorder, "checkpoint", checkpoint)


def test_tensorboard_has_grouped_tags_settings_and_the_picture(tmp_path):
    st3_train(*TINY, f"run_dir={tmp_path}", "sparsity=0.7")
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0})
    events.Reload()
    summary = RunDirectory(tmp_path).finished()
    present = {tag for name, tag in loggers.TAGS.items() if not name.startswith("val")}
    assert set(events.Tags()["scalars"]) == present | set(loggers.RESULT.values())
    [top1] = events.Scalars("result/top1")
    assert (top1.step, top1.value) == (9, pytest.approx(summary.top1))
    assert events.Tags()["images"] == ["run"]
    sessions = [HParamsPluginData.FromString(content) for content in events.PluginTagToContent("hparams").values()]
    [start] = [each.session_start_info for each in sessions if each.HasField("session_start_info")]
    assert start.hparams["sparsity"].number_value == 0.7
    assert start.hparams["method.name"].string_value == "st3"


@pytest.mark.slow
def test_mlflow_has_one_run_also_of_two_sittings(offline, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    after_an_epoch(monkeypatch)
    assert st3_train(*TINY, "logger=mlflow", "run_dir=x", "sparsity=0.7").code == 130
    assert st3_train("run_dir=x").code == 0
    client = mlflow.MlflowClient()
    [run] = client.search_runs([client.get_experiment_by_name("st3").experiment_id])
    summary = RunDirectory(offline / "x").finished()
    assert run.info.run_name == "x"
    assert run.info.status == "FINISHED"
    assert (run.data.params["sparsity"], run.data.params["method.name"]) == ("0.7", "st3")
    assert run.data.metrics["result/top1"] == pytest.approx(summary.top1)
    assert [each.step for each in client.get_metric_history(run.info.run_id, "test/top1")] == [3, 6, 9]
    assert [each.path for each in client.list_artifacts(run.info.run_id)] == ["run.png"]


@pytest.mark.slow
def test_wandb_has_one_run_also_of_two_sittings(offline, monkeypatch):
    pytest.importorskip("wandb")
    after_an_epoch(monkeypatch)
    assert st3_train(*TINY, "logger=wandb", "run_dir=x").code == 130
    assert st3_train("run_dir=x").code == 0
    sittings = list((offline / "x" / "wandb").glob("offline-run-*"))
    assert len(sittings) == 2
    assert len({each.name.rpartition("-")[2] for each in sittings}) == 1
    assert [each.name for each in sittings[-1].rglob("run_*.png")] or [each.name for each in sittings[0].rglob("*.png")]


def test_a_client_that_is_not_there_is_named_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    said = refused(*TINY, "logger=wandb", f"run_dir={tmp_path / 'x'}")
    assert said == "logger=wandb needs its client: pip install 'st3[wandb]'"
    assert not (tmp_path / "x").exists()
    assert "logger=comet" in refused(*TINY, "logger=comet")


def test_the_picture_is_what_the_file_has(tmp_path):
    st3_train(*TINY, f"run_dir={tmp_path}")
    events = EventAccumulator(str(tmp_path), size_guidance={"images": 0})
    events.Reload()
    [picture] = events.Images("run")
    assert np.frombuffer(picture.encoded_image_string[:4], np.uint8).tolist() == [137, 80, 78, 71]  # PNG
    assert picture.width > picture.height > 100
