"""`st3 predict` sees files as evaluation does, and says which it cannot read."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from deploy_cases import FOLDER, refused, st3_, trained, tree
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import st3


@pytest.fixture(scope="module", params=["random_resized_crop", "crop"])
def run(request, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("runs")
    root = tree(path / "data", ["train", "test"])
    words = [f"dataset.root={root}", f"dataset.augment={request.param}", "epochs=2", "optimizer.lr=0.01"]
    return trained(path / "run", *FOLDER, *words)


def test_predictions_are_those_of_the_evaluation(run, tmp_path):
    files = run.parent / "data" / "test"
    assert st3_("eval", run, "--out", tmp_path).code == 0
    confusion = torch.tensor(json.loads((tmp_path / "test.json").read_text())["confusion"])
    assert st3_("predict", run, files, "--json", tmp_path / "found.json").code == 0
    found, counted = json.loads((tmp_path / "found.json").read_text()), torch.zeros(3, 3, dtype=torch.int64)
    for each in found:
        counted["abc".index(Path(each["file"]).parent.name), "abc".index(each["classes"][0]["class"])] += 1
    assert torch.equal(counted, confusion)
    assert [each["file"] for each in found] == sorted(map(str, files.glob("*/*")))

    model = st3.load(run)  # and those of three lines of Python
    with torch.no_grad():
        probabilities = model(torch.stack([model.preprocess(each["file"]) for each in found])).softmax(1)
    for each, row in zip(found, probabilities, strict=True):
        said = {one["class"]: one["probability"] for one in each["classes"]}
        assert [said[label] for label in model.classes] == pytest.approx(row.tolist(), abs=1e-5)


def test_a_table_on_the_terminal_and_in_a_file(run, tmp_path):
    shutil.copy(run / "model.safetensors", tmp_path / "alone.safetensors")
    a, b = run.parent / "data" / "test" / "a" / "0.png", run.parent / "data" / "test" / "b" / "1.jpg"
    answer = st3_("predict", tmp_path / "alone.safetensors", b, a, "--top", "2", "--csv", tmp_path / "found.csv")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert [line.split()[0] for line in lines] == [str(b), str(a)]
    assert all(line.count(" %") == 2 for line in lines)
    assert len(set(map(len, lines))) == 1
    with open(tmp_path / "found.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["file"], row["rank"]) for row in rows] == [(str(each), rank) for each in (b, a) for rank in "12"]


def test_names_of_classes_are_no_formulas_of_a_spreadsheet_and_no_commands_of_a_terminal(run, tmp_path):
    path, names = tmp_path / "model.safetensors", ["=1+1", "\x1b[2J", "c"]
    with safe_open(run / "model.safetensors", "pt") as file:
        save_file(load_file(run / "model.safetensors"), path, file.metadata() | {"classes": json.dumps(names)})
    image = tmp_path / "a\x1b[2J.png"
    shutil.copy(run.parent / "data" / "test" / "a" / "0.png", image)
    answer = st3_("predict", path, image, "--csv", tmp_path / "found.csv")
    assert answer.code == 0
    assert "\x1b" not in answer.out
    with open(tmp_path / "found.csv", encoding="utf-8") as file:
        assert {row["class"] for row in csv.DictReader(file)} == {"'=1+1", *names[1:]}


def test_what_cannot_be_read_is_named_and_left_out(run, tmp_path):
    shutil.copytree(run.parent / "data" / "test" / "a", tmp_path / "a" / "below")
    (tmp_path / "a" / "bad.png").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "a" / "fifo.png")  # opened, it would wait for ever
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / ".hidden.png").touch()
    answer = st3_("predict", run, tmp_path / "a", tmp_path / "nowhere.png")
    assert answer.code == 1
    assert len(answer.out.splitlines()) == 6
    assert [line.split(":")[0] for line in answer.err.splitlines()] == [
        f"cannot read image {tmp_path / name}" for name in ("a/bad.png", "a/fifo.png", "nowhere.png")
    ]
    assert st3_("predict", run, tmp_path / "nowhere.png").out == ""


def test_mistakes_are_said_in_a_line(run, tmp_path):
    (tmp_path / "empty").mkdir()
    assert "empty has no image files: give files, or a folder of them" in refused("predict", run, tmp_path / "empty")
    assert "--top 0 must be at least 1" in refused("predict", run, "a.png", "--top", "0")
    assert "nowhere does not exist" in refused("predict", "nowhere", "a.png")
    assert "the following arguments are required: FILE" in refused("predict", run)
