"""`st3 eval` says to the last image what the run said of itself, and what there is to say beyond."""

import csv
import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deploy_cases import FOLDER, refused, st3_, trained, tree
from PIL import Image

from st3.deploy.evaluation import free_name
from st3.training.run_directory import RunDirectory

MORE = "dataset.image_size=32", "dataset.val_images=16", "dataset.test_images=200"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def is_what_the_summary_says(run: Path, splits=("test", "val")) -> None:
    """Evaluate the splits with the real command and compare."""
    summary = read(run / "summary.json")
    for split in splits:
        answer = st3_("eval", run, "--split", split, "--device", "cpu")
        assert (answer.code, answer.err) == (0, "")
        assert "as summary.json says" in answer.line("top-1")
        found, prefix = read(run / "evaluation" / f"{split}.json"), "val_" if split == "val" else ""
        assert (found["top1"], found["top5"]) == (summary[f"{prefix}top1"], summary[f"{prefix}top5"])
        confusion = torch.tensor(found["confusion"])
        assert confusion.sum() == found["images"] == sum(found["class_images"])
        assert 100 * int(confusion.diag().sum()) / found["images"] == found["top1"]
        assert 100 * sum(found["class_top5"]) / found["images"] == found["top5"]
        with Image.open(run / "evaluation" / f"{split}.png") as picture:
            assert picture.width > 400


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ["model=resnet20"],
        ["model=resnet18", "dataset.image_size=16"],
        ["model=mobilenet_v3_small"],
        ["model=vgg11_bn"],
        ["model.name=wrn10_1"],
        ["model=resnet20", "precision=bf16", "dataset.image_size=16"],
        ["model=resnet20", "ema=0.9"],
        ["model.bn_eps=0.01", "method=dense", "dataset.channels=1", "dataset.mean=[0.5]", "dataset.std=[0.5]"],
    ],
    ids=" ".join,
)  # fmt: skip
def test_accuracy_is_that_of_the_summary(words, tmp_path, no_picture):
    run = trained(tmp_path / "run", *MORE, *words)
    is_what_the_summary_says(run)
    assert read(run / "evaluation" / "test.json")["precision"] == ("bf16" if "precision=bf16" in words else "fp32")


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ["random_resized_crop", "crop"])
@pytest.mark.parametrize("layout", ["train val test", "train test", ""])
def test_so_it_is_on_image_folders(layout, augment, channels, tmp_path, no_picture):
    root = tree(tmp_path / "data", layout.split() or ["."])
    statistics = [f"dataset.{key}={[0.5] * channels}" for key in ("mean", "std")]
    words = [f"dataset.root={root}", f"dataset.augment={augment}", f"dataset.channels={channels}", *statistics]
    held_out = ["dataset.val_images=0.4"] if not layout else []
    run = trained(tmp_path / "run", *FOLDER, *words, *held_out)
    is_what_the_summary_says(run, ["test", "val"] if "val" in layout else ["test"])
    if not layout:
        assert "no images are held out for validation" in refused("eval", run, "--split", "val")
    else:  # the same files, given as other data
        use = "test" if "test" in layout else "val"
        assert st3_("eval", run, "--data", root / use, "--device", "cpu").code == 0
        one, other = (read(run / "evaluation" / f"{name}.json") for name in ("test", f"test-{use}"))
        assert other["split"] == "all"
        assert one["confusion"] == other["confusion"]


@pytest.mark.slow
@pytest.mark.parametrize("augment", ["random_resized_crop", "crop"])
def test_files_that_the_run_left_out_are_left_out_again(augment, tmp_path):
    root = tree(tmp_path / "data", ["train", "test"])
    (root / "test" / "a" / "0.png").write_bytes(b"no picture")
    words = [f"dataset.root={root}", f"dataset.augment={augment}", "dataset.on_error=skip", "epochs=1"]
    run = trained(tmp_path / "run", *FOLDER, *words)
    is_what_the_summary_says(run, ["test"])
    assert read(run / "evaluation" / "test.json")["class_images"] == [5, 6, 6]
    assert "1 image files that cannot be read were left out" in st3_("eval", run).line("warning")


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Trained on a, b, c."""
    path = tmp_path_factory.mktemp("a")
    root = tree(path / "data", ["train", "test"])
    return trained(path / "run", *FOLDER, f"dataset.root={root}", "dataset.augment=crop", "epochs=1")


def test_the_files_say_the_same_of_each_class(run, tmp_path):
    assert st3_("eval", run, "--out", tmp_path / "out", "--split", "train").code == 0
    found = read(tmp_path / "out" / "train.json")
    with open(tmp_path / "out" / "train.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["class"] for row in rows] == found["classes"] == ["a", "b", "c"]
    assert [int(row["images"]) for row in rows] == found["class_images"] == [6, 6, 6]
    assert [int(row["top1"]) for row in rows] == [found["confusion"][i][i] for i in range(3)]
    assert [int(row["predicted"]) for row in rows] == torch.tensor(found["confusion"]).sum(0).tolist()


def test_other_images_are_matched_by_the_names_of_their_classes(run, tmp_path):
    other = tree(tmp_path / "other", ["."], "cb", images=4)  # b, which is brighter here, is no longer the second
    answer = st3_("eval", run, "--data", other, "--out", tmp_path / "out")
    assert answer.line("warning") == "no images of a"
    assert read(tmp_path / "out" / "test-other.json")["class_images"] == [0, 4, 4]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"test-other.{kind}" for kind in ("csv", "json", "png")
    ]
    again = tree(tmp_path / "else" / "other", ["test", "val"], "abc")
    st3_("eval", run, "--data", other, "--out", tmp_path / "out")
    st3_("eval", run, "--data", again, "--out", tmp_path / "out")
    assert read(tmp_path / "out" / "test-other-2.json")["data"] == str(again)
    assert read(tmp_path / "out" / "test-other-2.json")["split"] == "test"
    assert "has no folder for train: choose val or test" in refused("eval", run, "--data", again, "--split", "train")
    (again / "test" / "zebra").mkdir()
    assert "has classes that the network does not know: zebra; it knows a, b, c" in refused(
        "eval", run, "--data", again, code=3
    )


@contextmanager
def summarised(run, **changes):
    """The run with another summary.json, which its manifest knows."""
    directory, summary = RunDirectory(run), RunDirectory(run).summary()
    (run / "manifest.json").unlink()
    directory.write_summary(replace(summary, **changes))
    directory.seal()
    yield
    directory.write_summary(summary)
    directory.seal()


def test_what_differs_from_the_summary_is_said(run, tmp_path):
    with summarised(run, top1=1.0):
        answer = st3_("eval", run, "--out", tmp_path, "--precision", "bf16")
    assert answer.line("computing") == "bf16 on cpu"
    assert answer.line("warning").startswith("summary.json says 1.00 % (top-5 100.00 %): another device, precision")


def test_a_run_that_is_being_lengthened_is_said_to_be(run, tmp_path):
    with summarised(run, finished=False, top1=1.0):
        answer = st3_("eval", run, "--out", tmp_path)
    assert answer.line("warning") == f"{run} goes on for more epochs: this is the network from before them"
    assert "summary.json" not in answer.out


def test_mistakes_are_said_in_a_line(run, tmp_path, monkeypatch):
    assert "nowhere is no folder: give that of a finished run" in refused("eval", "nowhere")
    assert "is no folder: give that of a finished run" in refused("eval", run / "model.safetensors")
    assert "model.safetensors does not exist" in refused("eval", tmp_path)
    assert "argument --split: invalid choice" in refused("eval", run, "--split", "all")
    assert "precision=fp16 needs a CUDA device" in refused("eval", run, "--precision", "fp16", "--device", "cpu")
    assert "is no folder: give the one that holds the images" in refused("eval", run, "--data", tmp_path / "no", code=3)
    data = run.parent / "data"
    data.rename(tmp_path / "moved")
    try:
        assert f"{data}, where the images of {run} were, is not there: give --data DIR" in refused("eval", run)
    finally:
        (tmp_path / "moved").rename(data)


def test_a_precision_that_a_cpu_has_not_is_replaced_and_said(run, tmp_path):
    directory = RunDirectory(run)
    before = directory.environment()
    directory.start(directory.config(), [], before | {"precision": "fp16"})
    directory.seal()
    try:
        answer = st3_("eval", run, "--out", tmp_path, "--device", "cpu")
    finally:
        directory.start(directory.config(), [], before)
        directory.seal()
    assert answer.line("computing") == "fp32 on cpu, not fp16 as in training, which a CPU has not"


def test_a_name_that_is_taken_by_what_cannot_be_read_is_not_taken_again(tmp_path):
    (tmp_path / "test-images.json").write_text("[" * 100_000)
    assert free_name(tmp_path, "test", tmp_path / "images") == "test-images-2"
    (tmp_path / "test-images-2.json").write_text(json.dumps({"data": str((tmp_path / "images").resolve())}))
    assert free_name(tmp_path, "test", tmp_path / "images") == "test-images-2"
