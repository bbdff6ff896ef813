"""An epoch from the middle on: what a run that was interrupted there has still to see."""

import numpy as np
import pytest
import torch
from data_cases import FAKE, FOLDER, build
from PIL import Image

from st3.data import AugmentationConfig
from st3.data.arrays import ArrayLoader
from st3.data.augmentation import Augmenter
from st3.data.folder_loader import FolderLoader

AUGMENTATIONS = {
    "none": None,
    "mixed": AugmentationConfig(policy="trivialaugment", erasing=0.5, mixup=0.3, cutmix=1.0),
    "randaugment": AugmentationConfig(policy="randaugment", cutmix=1.0),
}
KINDS = {
    "arrays": FAKE | {"batch_size": 6},
    "streamed": FOLDER,
    "workers": FOLDER | {"workers": 2},
    "decoded once": FOLDER | {"augment": "crop_flip"},
}


def settings(kind, tree):
    return KINDS[kind] | ({} if kind == "arrays" else {"root": str(tree), "batch_size": 2})


def assert_the_rest_is_the_same(loader, epoch=3):
    whole = list(loader.epoch(epoch))
    for start in (0, 1, len(loader) // 2, len(loader)):
        rest = list(loader.epoch(epoch, start))
        assert len(rest) == len(whole) - start
        for ours, expected in zip(rest, whole[start:], strict=True):
            assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize("augmentation", AUGMENTATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_rest_of_an_epoch_is_what_it_would_have_been(tree, kind, augmentation):
    data = build(**settings(kind, tree), augmentation=AUGMENTATIONS[augmentation])
    assert len(data.train) >= 6
    assert_the_rest_is_the_same(data.train)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rank", [0, 1])
def test_so_it_is_for_each_of_several_processes(tree, kind, rank):
    options = settings(kind, tree) | {"rank": rank, "world_size": 2}
    assert_the_rest_is_the_same(build(**options, augmentation=AUGMENTATIONS["mixed"]).train)


@pytest.mark.parametrize("kind", KINDS)
def test_so_it_is_in_an_evaluation(tree, kind):
    assert_the_rest_is_the_same(build(**settings(kind, tree) | {"eval_batch_size": 2}).test)


@pytest.mark.parametrize("kind", ["streamed", "workers", "decoded once"])
def test_so_it_is_where_files_are_left_out(tree, kind):
    (tree / "train" / "a" / "3.jpg").write_bytes(b"no image")
    assert_the_rest_is_the_same(build(**settings(kind, tree) | {"on_error": "skip"}).train)


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_a_start_within_images_that_are_augmented_together(at_once):
    images = torch.from_numpy(np.random.default_rng(0).integers(256, size=(70, 3, 12, 12), dtype=np.uint8))
    loader = ArrayLoader(
        images, torch.arange(70) % 5, batch_size=10, mean=[0.0] * 3, std=[1.0] * 3, augment="crop_flip", training=True,
        augmenter=Augmenter(AUGMENTATIONS["mixed"], 5, 12),
    )  # fmt: skip
    loader._batches_at_once = at_once
    assert_the_rest_is_the_same(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_no_file_of_the_batches_before_is_read(photographs, workers):
    paths, labels = photographs
    size = {"image_size": 16, "channels": 3, "mean": [0.0] * 3, "std": [1.0] * 3}
    loader = FolderLoader(paths, labels, batch_size=2, workers=workers, **size)
    for path in paths[:4]:
        Image.new("RGB", (1, 1)).save(path, "GIF")  # reading it would be an error
    assert [len(labels) for _, labels in loader.epoch(0, 2)] == [2]
