"""Image folders: which splits there are, what is counted, what is refused."""

import shutil
from dataclasses import replace

import pytest
from data_cases import FAKE, FOLDER, build, dataset, refused
from PIL import Image

from st3.data import Facts, dataset_facts, folders_used
from st3.errors import UserError


def test_facts_of_a_folder_come_from_its_listing(tree):
    for path in tree.rglob("*.jpg"):
        path.write_bytes(b"never opened")
    folder = dataset(**FOLDER | {"root": str(tree)})
    assert dataset_facts(folder) == Facts(classes=2, train_images=12, val_images=0, test_images=6)
    assert dataset_facts(replace(folder, classes=5, val_images=11)) == Facts(5, 1, 11, 6)
    imagenet = replace(folder, name="imagenet", root=None, classes=1000, train_images=1_281_167, test_images=50_000)
    assert dataset_facts(imagenet) == Facts(1000, 1_281_167, 0, 50_000)
    with pytest.raises(UserError, match=r"dataset\.train_images=N is needed by dataset=fake"):
        dataset_facts(dataset(**FAKE | {"train_images": None}))


def test_a_hold_out_of_all_training_images_is_refused(tree):
    for config in (dataset(**FOLDER | {"root": str(tree), "val_images": 12}), dataset(**FAKE | {"val_images": 50})):
        count = config.val_images
        with pytest.raises(UserError, match=rf"dataset\.val_images={count} leaves nothing of {count} training images"):
            dataset_facts(config)


def test_only_an_image_tree_has_folders(tree):
    folder = dataset(**FOLDER | {"root": str(tree)})
    assert folders_used(folder) == {"train": tree / "train", "test": tree / "test"}
    assert folders_used(replace(folder, root=None)) == folders_used(replace(folder, name="mnist")) == {}


def test_a_tree_with_val_and_test_is_validated_on_one_and_tested_on_the_other(tree):
    for label, count in (("a", 2), ("b", 5)):
        shutil.copytree(tree / "test" / label, tree / "val" / label)
        for i in range(3, count):
            shutil.copy(tree / "test" / label / "0.jpg", tree / "val" / label / f"{i}.jpg")
    arguments = {**FOLDER, "root": str(tree)}
    data = build(**arguments)
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (12, 8, 6)
    assert "has a val/ folder for that" in refused(**arguments | {"val_images": 2})
    assert dataset_facts(dataset(**arguments)) == Facts(2, 12, 0, 6)
    assert set(folders_used(dataset(**arguments))) == {"train", "val", "test"}

    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    (tree / "test" / "unlabelled.jpg").touch()  # as ImageNet's
    data = build(**arguments)
    assert data.val is None
    assert data.test.num_images == 8


def test_folders_that_do_not_fit_are_refused(tree):
    arguments = FOLDER | {"root": str(tree)}
    assert "dataset.root=DIR is needed" in refused(**arguments | {"root": None})
    assert f"dataset.root={tree}/train has no train/ folder" in refused(**arguments | {"root": f"{tree}/train"})
    many = refused(**arguments | {"classes": 10})
    assert many == f"dataset.classes=10 but {tree} has 2 class folders: set dataset.classes=2"
    few = refused(**arguments | {"train_images": 13})
    assert few == f"dataset.train_images=13 but {tree} has 12 training images: set dataset.train_images=12"
    assert "batch_size=13 is larger than the 12 training images" in refused(**arguments | {"batch_size": 13})
    cache = refused(**arguments | {"cache": "somewhere"})
    assert cache == (
        "dataset.cache=somewhere has no effect with dataset.augment=random_resized_crop: set dataset.cache=null"
    )
    assert "dataset.decode=gpu needs a CUDA device, not cpu" in refused(**arguments | {"decode": "gpu"})
    grey = {"decode": "gpu", "channels": 1, "mean": [0.5], "std": [0.5]}
    assert "dataset.decode=gpu gives RGB, not dataset.channels=1" in refused(**arguments | grey)
    (tree / "test" / "c").mkdir()
    assert "remove empty class folders" in refused(**arguments)
    Image.new("RGB", (8, 8)).save(tree / "test" / "c" / "0.jpg")
    assert "hold other classes (c)" in refused(**arguments)
    (tree / "test").rename(tree / "held")
    assert "has no val/ or test/ folder" in refused(**arguments)
