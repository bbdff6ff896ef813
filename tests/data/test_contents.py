"""What the data are, and in which words it is told that they have changed."""

import json
import os
import shutil
import time

import numpy as np
import pytest
import torch
from data_cases import FAKE, FOLDER, build, dataset
from PIL import Image

from st3.data import contents, contents_changes
from st3.data.contents import contents_of
from st3.data.datasets import Source, Split

EMBEDDED = FAKE | {"name": "fashion_mnist_embedded", "image_size": 28, "channels": 1, "mean": [0.0], "std": [1.0]}
EMBEDDED |= {"train_images": 8000, "test_images": 2000, "augment": "none"}
UNKNOWN = ["what they were before is not recorded in a way that can be compared"]


def folder(tree, **options):
    return FOLDER | {"root": str(tree)} | options


@pytest.mark.parametrize("options", [FAKE, EMBEDDED, FOLDER, FOLDER | {"augment": "none"}])
def test_they_are_the_same_from_the_settings_alone_and_in_every_process(tree, options):
    options = options if options["name"] != "folder" else folder(tree, **{"augment": options["augment"]})
    found = build(**options).contents
    assert json.loads(json.dumps(found)) == found
    assert contents(dataset(**options), seed=0) == found
    for other in ({"rank": 1, "world_size": 2}, {"val_images": 2}, {"workers": 1}):
        assert contents_changes(build(**options | other).contents, found) == []


def test_those_of_a_folder_are_names_and_numbers_and_no_file_is_opened(tree, monkeypatch):
    (tree / "train" / "c").mkdir()
    (tree / "test" / "c").mkdir()
    found = contents(dataset(**folder(tree)), 0)
    assert found["classes"] == ["a", "b", "c"]
    assert {
        use: {label: each["images"] for label, each in split.items()} for use, split in found["splits"].items()
    } == {
        "train": {"a": 6, "b": 6, "c": 0},
        "test": {"a": 3, "b": 3, "c": 0},
    }
    monkeypatch.setattr(Image, "open", None)
    moved = tree.with_name("elsewhere")
    tree.rename(moved)
    assert contents(dataset(**folder(f"{moved}/")), 0) == found
    (moved / "train" / "a" / "0.jpg").write_bytes(b"another image")
    assert contents(dataset(**folder(moved)), 0) == found


def test_changes_of_a_folder_are_told_in_words(tree):
    before = contents(dataset(**folder(tree)), 0)

    def changes():
        return contents_changes(before, contents(dataset(**folder(tree)), 0))

    assert changes() == []
    shutil.copy(tree / "train" / "a" / "0.jpg", tree / "train" / "a" / "7.jpg")
    (tree / "train" / "b" / "0.jpg").rename(tree / "train" / "b" / "0.png")
    (tree / "test" / "b" / "0.jpg").unlink()
    assert changes() == [
        "train/a has 7 images, not 6",
        "train/b has other images, as many as before",
        "test/b has 2 images, not 3",
    ]
    for split in ("train", "test"):
        (tree / split / "a").rename(tree / split / "zebra")
    assert changes() == [
        "class zebra is new",
        "class a is gone",
        "train/b has other images, as many as before",
        "test/b has 2 images, not 3",
    ]
    shutil.copytree(tree / "test", tree / "val")
    assert changes()[-1] == "val is new"
    for i in range(20):
        for split in ("train", "val", "test"):
            (tree / split / f"n{i}").mkdir()
    assert changes()[-1].startswith("and ")
    assert changes()[-1].endswith(" more")
    assert len(changes()) == 6


def test_a_file_in_a_folder_below_or_of_an_odd_name_is_seen(tree):
    deep = tree / "train" / "a" / "deeper"
    deep.mkdir()
    before = contents(dataset(**folder(tree)), 0)
    (tree / "train" / "a" / "0.jpg").rename(deep / "0.jpg")
    moved = contents(dataset(**folder(tree)), 0)
    assert contents_changes(before, moved) == ["train/a has other images, as many as before"]
    (deep / "0.jpg").rename(os.fsdecode(os.fsencode(deep) + b"/\xff.jpg"))
    assert contents_changes(moved, json.loads(json.dumps(contents(dataset(**folder(tree)), 0)))) == [
        "train/a has other images, as many as before"
    ]


def test_changes_of_images_in_memory_are_told_in_words():
    def source(pixel=0, label=0, images=4, classes=("x", "y")):
        pixels = torch.zeros(images, 2, 3, 1, dtype=torch.uint8).permute(0, 3, 1, 2)
        pixels[0, 0, 0, 0] = pixel
        part = Split(pixels, torch.full((images,), label))
        return contents_of(Source(part, Split(torch.zeros(1, 1, 2, 3, dtype=torch.uint8), torch.zeros(1)), classes))

    assert contents_changes(source(), source()) == []
    for other in (source(pixel=1), source(label=1)):
        assert contents_changes(source(), other) == ["the pixels or labels of train are others"]
    assert contents_changes(source(), source(images=5)) == ["train has 5 images, not 4"]
    assert contents_changes(source(), source(classes=("y", "x"))) == ["the classes are in another order"]
    assert contents_changes(source(), source(classes=("x", "z"))) == ["class z is new", "class y is gone"]


def test_image_files_are_told_from_images_in_memory(tree):
    files, pixels = contents(dataset(**folder(tree)), 0), contents(dataset(**FAKE), 0)
    pixels["classes"] = files["classes"]
    assert contents_changes(pixels, files) == [
        "train is image files, not images in memory",
        "test is image files, not images in memory",
    ]


@pytest.mark.parametrize(
    "before",
    [
        None, 3, "text", [], {}, {"classes": []}, {"classes": "ab", "splits": {}}, {"classes": [1], "splits": {}},
        {"classes": [], "splits": []}, {"classes": [], "splits": {"train": 3}}, {"classes": [], "splits": {1: {}}},
        {"classes": [], "splits": {"train": {"a": {"images": "1", "sha256": ""}}}},
        {"classes": [], "splits": {"train": {"a": {"images": -1, "sha256": ""}}}},
        {"classes": [], "splits": {"train": {"a": {"images": 10**5000, "sha256": ""}}}},
        {"classes": [], "splits": {"train": {"a": {"images": 1}}}},
        {"classes": [[]], "splits": {}}, {"classes": [], "splits": {"train": {"a": {"images": 1, "sha256": []}}}},
    ],
)  # fmt: skip
def test_what_is_no_record_cannot_be_compared(before):
    assert contents_changes(before, contents(dataset(**FAKE), 0)) == UNKNOWN


def test_a_record_of_odd_names_makes_lines_of_text(tree):
    entry = {"images": 1, "sha256": "no hash"}
    before = {"classes": ["two\nlines", "a"], "splits": {"tr\tain": {"a\a": entry}, "train": {"c\n": entry}}}
    changes = contents_changes(before, contents(dataset(**folder(tree)), 0))
    assert all(line.isprintable() for line in changes)
    assert "class 'two\\nlines' is gone" in changes


def test_a_million_files_take_about_a_second():
    paths = np.array([f"/data/train/{i % 1000:04}/image_{i:07}.jpg" for i in range(1_000_000)], object)
    part = Split(paths, torch.arange(1_000_000) % 1000)
    classes = tuple(f"{i:04}" for i in range(1000))
    begin = time.process_time()
    found = contents_of(Source(part, None, classes, folders={"train": "/data/train"}))
    assert time.process_time() - begin < 5  # a busy machine is no failure
    assert found["splits"]["train"]["0007"]["images"] == 1000
