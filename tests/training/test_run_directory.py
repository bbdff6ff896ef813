"""The files of a run: which folders are taken, what is written, and what is said of damage when it is read."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from training_cases import SUMMARY

from st3.errors import UserError
from st3.measure import LayerRow
from st3.training.run_directory import METRICS, RunDirectory

CONFIG = {"model": {"name": "resnet20", "depth": None}, "method": {"include": ["*"]}, "sparsity": 0.9, "run_dir": None}


def started(path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.check()
    directory.start(CONFIG, ["sparsity=0.9"], {"st3": "0", "git": None})
    return directory


# Which folders are taken ----------------------------------------------------------------------------------------------


def test_nothing_is_written_before_start_and_nothing_is_there_to_read(tmp_path):
    directory = RunDirectory(tmp_path / "a" / "run")
    directory.check()
    assert (directory.config(), directory.summary(), directory.finished()) == (None, None, None)
    assert (directory.has_checkpoint(), directory.checkpoint()) == (False, None)
    assert (directory.overrides(), directory.environment(), directory.metrics()) == ([], {}, [])
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_is_taken_and_says_what_runs_in_it(tmp_path):
    started(tmp_path)
    again = RunDirectory(tmp_path)
    again.check()
    assert again.config() == CONFIG
    assert again.overrides() == ["sparsity=0.9"]
    assert again.environment() == {"st3": "0", "git": None}


def test_a_foreign_folder_and_a_file_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(UserError, match=r"holds other files but no run: choose an empty or new folder"):
        RunDirectory(tmp_path).check()
    with pytest.raises(UserError, match=r"is a file: choose a folder"):
        RunDirectory(tmp_path / "thesis.tex").check()
    with pytest.raises(UserError, match=r"cannot be created \(Not a directory\): choose another"):
        RunDirectory(tmp_path / "thesis.tex" / "run").start(CONFIG, [], {})
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_fresh_folders_are_never_shared(tmp_path):
    paths = []
    for _ in range(3):
        directory = RunDirectory(tmp_path / "outputs" / "run", fresh=True)
        directory.check()
        assert (directory.config(), directory.finished(), directory.checkpoint()) == (None, None, None)
        directory.start(CONFIG, [], {})
        paths.append(directory.path.name)
        assert directory.config() == CONFIG
    assert paths == ["run", "run-2", "run-3"]


# What is written and read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [False, True])
def test_the_summary_says_whether_the_run_is_complete(tmp_path, finished):
    directory = started(tmp_path)
    directory.write_summary(summary := SUMMARY(finished=finished))
    assert directory.summary() == summary
    assert directory.finished() == (summary if finished else None)


def test_networks_and_checkpoints_come_back(tmp_path):
    directory, state = started(tmp_path), {"epoch": 3, "model": {"w": torch.randn(3, 2)}}
    directory.write_checkpoint(state)
    assert directory.has_checkpoint()
    found = directory.checkpoint()
    assert found["epoch"] == 3
    assert torch.equal(found["model"]["w"], state["model"]["w"])
    directory.write_best(state["model"])
    assert torch.equal(torch.load(tmp_path / "best.pt", weights_only=True)["w"], state["model"]["w"])
    directory.write_network(state["model"], {"model": "mlp"})
    assert torch.equal(load_file(tmp_path / "model.safetensors")["w"], state["model"]["w"])


def test_layers_have_a_row_each(tmp_path):
    directory = started(tmp_path)
    fc = LayerRow("fc", "3×4", 12, True, 6, 0.5, 0.25, 12, 6, False)
    directory.write_layers([fc, LayerRow("conv", "1×1", 1, False, 0, 0.0, 0.0, 9, 9, False)])
    first, second = directory.layers()
    assert first == {
        "name": "fc", "shape": "3×4", "params": "12", "pruned": "True", "zeros": "6", "sparsity": "0.5",
        "threshold": "0.25", "macs_dense": "12", "macs": "6", "dead": "False",
    }  # fmt: skip
    assert (second["name"], second["pruned"]) == ("conv", "False")


def test_metrics_are_kept_up_to_a_step_and_a_row_that_is_cut_off_is_left_out(tmp_path):
    directory = started(tmp_path)
    path = directory.keep_metrics(0)
    with open(path, "a", newline="") as file:
        rows = csv.DictWriter(file, METRICS)
        rows.writerows({"epoch": 1, "step": step, "train_loss": 0.5} for step in (2, 4, 6))
        file.write("1,")
    assert [row["step"] for row in directory.metrics()] == ["2", "4", "6"]
    assert directory.keep_metrics(4) == path
    assert [row["step"] for row in directory.metrics()] == ["2", "4"]
    assert path.read_text().splitlines()[0] == ",".join(METRICS)


# Damage ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "read"),
    [("config.yaml", RunDirectory.config), ("overrides.yaml", RunDirectory.overrides),
     ("environment.yaml", RunDirectory.environment)],
)  # fmt: skip
@pytest.mark.parametrize("content", ["a: [", "7", "\0", "b\xff"], ids=["cut off", "number", "zeros", "bytes"])
def test_a_damaged_yaml_file_is_named(tmp_path, name, read, content):
    started(tmp_path)
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read(RunDirectory(tmp_path))
    message = str(caught.value)
    assert message.startswith(f"cannot read {tmp_path / name}")
    assert "\n" not in message
    assert "choose another run_dir" in message


def test_a_list_in_the_place_of_settings_is_damage_too(tmp_path):
    started(tmp_path)
    (tmp_path / "config.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"cannot read .*config\.yaml"):
        RunDirectory(tmp_path).config()


def test_a_damaged_summary_or_checkpoint_is_named(tmp_path):
    directory = started(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"top1": 50})[:-1])
    with pytest.raises(UserError, match=r"summary\.json is damaged .*: delete it"):
        directory.finished()
    (tmp_path / "last.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cannot read .*last\.pt"):
        directory.checkpoint()


def test_missing_layers_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*layers\.csv"):
        started(tmp_path).layers()
