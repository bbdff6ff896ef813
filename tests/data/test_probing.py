"""A look at a few files of each class before training."""

import numpy as np
import pytest
from data_cases import FAKE, FOLDER, dataset
from PIL import Image

from st3.data import probe
from st3.errors import UserError


@pytest.mark.parametrize("damaged", [0, 2, 5])  # the first, one between, the last
@pytest.mark.parametrize("content", [b"", b"no image", "cut short"])
def test_a_damaged_file_is_found_and_named(tree, damaged, content):
    config = dataset(**FOLDER | {"root": str(tree)})
    probe(config)
    bad = sorted((tree / "train" / "b").iterdir())[damaged]
    bad.write_bytes(bad.read_bytes()[:-40] if content == "cut short" else content)
    with pytest.raises(UserError) as caught:
        probe(config)
    message = str(caught.value)
    assert message.startswith(f"cannot read image {bad}: ")
    assert f"(1 of 12 files that were tried cannot be read; st3 check {tree} tries all" in message
    assert "\n" not in message
    probe(dataset(**FOLDER | {"root": str(tree), "on_error": "skip"}))


def test_only_a_few_files_are_opened(tree):
    for i in range(6, 20):
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tree / "train" / "a" / f"x{i:02}.png")
    for i in (1, 2, 3, 4, 5):
        (tree / "train" / "a" / f"{i}.jpg").write_bytes(b"not looked at")
    probe(dataset(**FOLDER | {"root": str(tree)}))


def test_only_image_trees_are_looked_at(tree):
    probe(dataset(**FAKE))
    probe(dataset(**FOLDER | {"name": "imagenet", "root": None}))
    (tree / "train" / "b").rename(tree / "train" / "c")
    with pytest.raises(UserError, match="has no c"):
        probe(dataset(**FOLDER | {"root": str(tree)}))
