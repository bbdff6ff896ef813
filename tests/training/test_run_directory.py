"""The files of a run: which folders are taken, what is written, and what is said of damage when it is read."""

import csv
import json

import pytest
import torch
from safetensors.torch import load_file
from training_cases import SUMMARY

from st3.errors import DamagedError, UserError
from st3.measure import LayerRow
from st3.training.run_directory import METRICS, RunDirectory

CONFIG = {"model": {"name": "resnet20", "depth": None}, "method": {"include": ["*"]}, "sparsity": 0.9, "run_dir": None}


def started(path) -> RunDirectory:
    directory = RunDirectory(path)
    directory.check()
    directory.claim()
    directory.start(CONFIG, ["sparsity=0.9"], {"st3": "0", "git": None})
    return directory


# Which folders are taken ----------------------------------------------------------------------------------------------


def test_nothing_is_written_before_it_is_claimed_and_nothing_is_there_to_read(tmp_path):
    directory = RunDirectory(tmp_path / "a" / "run")
    directory.check()
    assert (directory.config(), directory.summary(), directory.finished()) == (None, None, None)
    assert (directory.has_checkpoint(), directory.checkpoint()) == (False, (None, []))
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
        RunDirectory(tmp_path / "thesis.tex" / "run").claim()
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.tex"]


def test_fresh_folders_are_never_shared(tmp_path):
    paths = []
    for _ in range(3):
        directory = RunDirectory(tmp_path / "outputs" / "run", fresh=True)
        directory.check()
        assert (directory.config(), directory.finished(), directory.checkpoint()) == (None, None, (None, []))
        directory.claim()
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
    directory.write_checkpoint(state, state["model"], "epoch,step")
    assert directory.has_checkpoint()
    found, damaged = directory.checkpoint()
    assert (found.state["epoch"], found.metrics, damaged) == (3, "epoch,step", [])
    assert torch.equal(found.state["model"]["w"], state["model"]["w"])
    for best in (tmp_path / "best.pt", found.best):
        assert torch.equal(torch.load(best, weights_only=True)["w"], state["model"]["w"])
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


def test_a_run_of_an_earlier_version_goes_on_from_its_last_pt(tmp_path):
    """It kept one checkpoint, made when an epoch had ended, and rows of later steps in metrics.csv."""
    directory = started(tmp_path)
    torch.save({"step": 4, "epoch": 2}, tmp_path / "last.pt")
    with open(tmp_path / "metrics.csv", "w", newline="") as file:
        rows = csv.DictWriter(file, METRICS)
        rows.writeheader()
        rows.writerows({"epoch": 1, "step": step, "train_loss": 0.5} for step in (2, 4, 6))
        file.write("1,")
    assert [row["step"] for row in directory.metrics()] == ["2", "4", "6"]
    generation, _ = directory.checkpoint()
    assert generation.state == {"step": 4, "epoch": 2}
    directory.restore(generation)
    assert [row["step"] for row in directory.metrics()] == ["2", "4"]
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == ",".join(METRICS)


def test_what_is_restored_is_what_was_there_when_it_was_saved(tmp_path):
    directory = started(tmp_path)
    directory.write_checkpoint({"step": 4}, {"top1": 50.0}, "so far\n")
    (tmp_path / "best.pt").write_bytes(b"of a later evaluation")
    (tmp_path / "metrics.csv").write_text("so far\nand further\n")
    directory.restore(directory.checkpoint()[0])
    assert torch.load(tmp_path / "best.pt") == {"top1": 50.0}
    assert (tmp_path / "metrics.csv").read_text() == "so far\n"


# Who works here -------------------------------------------------------------------------------------------------------


def test_a_folder_that_was_claimed_for_nothing_is_gone_and_another_stays(tmp_path):
    directory = RunDirectory(tmp_path / "a" / "b" / "run")
    directory.claim()
    assert (directory.path / ".lock").exists()
    directory.release()
    assert not list(tmp_path.iterdir())
    directory = started(tmp_path / "run")
    directory.release()
    assert not (tmp_path / "run" / ".lock").exists()
    assert directory.config() == CONFIG


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", ".config.yaml.partial"]])
def test_a_run_that_was_killed_before_its_first_file_begins_again(tmp_path, left):
    for name in left:
        (tmp_path / name).touch()
    assert started(tmp_path).config() == CONFIG


# A complete run -------------------------------------------------------------------------------------------------------


def complete(path) -> RunDirectory:
    directory = started(path)
    directory.write_checkpoint({"step": 8}, {"top1": 50.0}, "a,b\n1,2\n")
    directory.write_metrics("a,b\n1,2\n")
    directory.write_layers([])
    directory.write_network({"w": torch.ones(3)}, {"model": "mlp"})
    directory.write_summary(SUMMARY(finished=True))
    directory.seal()
    return RunDirectory(path)


def test_a_run_is_complete_when_its_manifest_is_there(tmp_path):
    directory = complete(tmp_path)
    assert directory.finished() == SUMMARY(finished=True)
    assert directory.damage() == []
    directory.check_files()
    (tmp_path / "manifest.json").unlink()  # as when it was killed a moment before: it ends again, from its checkpoint
    assert directory.finished() is None
    assert directory.summary() == SUMMARY(finished=True)


READERS = {
    "config.yaml": RunDirectory.config,
    "overrides.yaml": RunDirectory.overrides,
    "environment.yaml": RunDirectory.environment,
    "metrics.csv": RunDirectory.metrics,
    "layers.csv": RunDirectory.layers,
    "summary.json": RunDirectory.finished,
    "model.safetensors": lambda directory: directory.checked("model.safetensors"),
    "best.pt": lambda directory: directory.checked("best.pt"),
}
FAULTS = {
    "bit": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "last bit": lambda content: content[:-1] + bytes([content[-1] ^ 128]),
    "cut": lambda content: content[:-1],
    "longer": lambda content: content + b" ",
    "empty": lambda content: b"",
    "gone": None,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_of_a_complete_run_is_named_by_whoever_reads_it(tmp_path, name, fault):
    directory = complete(tmp_path)
    READERS[name](directory)
    path = tmp_path / name
    if FAULTS[fault]:
        path.write_bytes(FAULTS[fault](path.read_bytes()))
    else:
        path.unlink()
    for read in (READERS[name], RunDirectory.check_files):
        with pytest.raises(DamagedError, match=rf"{name} (is|has) .*manifest\.json") as caught:
            read(directory)
        assert "\n" not in str(caught.value)
    assert len(directory.damage()) == 1


def test_a_run_that_goes_on_for_more_epochs_is_not_complete(tmp_path):
    complete(tmp_path)
    directory = started(tmp_path)
    assert directory.finished() is None
    assert not directory.summary().finished
    assert not (tmp_path / "manifest.json").exists()


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


def test_a_list_in_the_place_of_settings_is_damage_too(tmp_path):
    started(tmp_path)
    (tmp_path / "config.yaml").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"cannot read .*config\.yaml"):
        RunDirectory(tmp_path).config()


def test_a_damaged_summary_or_checkpoint_is_named(tmp_path):
    directory = started(tmp_path)
    (tmp_path / "summary.json").write_text(json.dumps({"top1": 50})[:-1])
    with pytest.raises(UserError, match=r"cannot read .*summary\.json: "):
        directory.finished()
    (tmp_path / "summary.json").unlink()
    (tmp_path / "last.pt").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"cannot read .*last\.pt"):
        directory.checkpoint()


def test_missing_layers_are_named(tmp_path):
    with pytest.raises(UserError, match=r"cannot read .*layers\.csv"):
        started(tmp_path).layers()
