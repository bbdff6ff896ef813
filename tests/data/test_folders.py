"""Image folders: which splits there are, what is counted, what is refused."""

import shutil
from dataclasses import replace

import pytest
import torch
from data_cases import FAKE, FOLDER, build, dataset, epoch, refused
from PIL import Image

from st3.data import Facts, data_warnings, dataset_facts, folders_used
from st3.data.folders import evaluation_folder
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
    (tree / "test").rename(tree / "held")
    no_test = refused(**arguments)
    assert no_test.startswith(
        f"dataset.root={tree} has no val/ or test/ folder: set dataset.val_images=0.1 to hold out"
    )
    with pytest.raises(UserError, match="has no val/ or test/ folder"):
        dataset_facts(dataset(**arguments))
    assert f"dataset.root={tree}/none is no folder" in refused(**arguments | {"root": f"{tree}/none"})
    (tree / "held").rename(tree / "test")
    (tree / "train").rename(tree / "training")
    assert f"dataset.root={tree} has no train/ folder" in refused(**arguments)
    (tree / "test").rename(tree / "held")
    assert f"dataset.root={tree} has neither train/ nor CLASS/FILE" in refused(**arguments)
    assert "has neither train/ nor CLASS/FILE" in refused(**arguments | {"root": f"{tree}/training/a"})


@pytest.mark.parametrize("val", [False, True])
def test_classes_that_a_split_lacks_are_named_with_it(tree, val):
    if val:
        shutil.copytree(tree / "test", tree / "val")
    (tree / "test" / "b").rename(tree / "test" / "c")
    (tree / "train" / "a" / "0.jpg").unlink()
    message = refused(**FOLDER | {"root": str(tree)})
    assert f"{tree}/train has no c; " + (f"{tree}/val has no c; " if val else "") + f"{tree}/test has no b:" in message
    with pytest.raises(UserError, match="has no c"):
        dataset_facts(dataset(**FOLDER | {"root": str(tree)}))


def test_an_empty_class_is_a_class_and_a_warning(tree):
    config = dataset(**FOLDER | {"root": str(tree)})
    assert data_warnings(config) == data_warnings(dataset(**FAKE)) == []
    for split in ("train", "test"):
        (tree / split / ".ipynb_checkpoints").mkdir()  # no class, whoever left it there
        (tree / split / "c" / "deeper").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tree / "test" / "c" / "deeper" / "0.jpg")
    (tree / "train" / "c" / "notes.txt").touch()
    assert dataset_facts(config) == Facts(classes=3, train_images=12, val_images=0, test_images=7)
    assert build(**FOLDER | {"root": str(tree)}).classes == ("a", "b", "c")
    assert data_warnings(config) == [f"no images in {tree}/train of c"]
    for i in range(7):
        (tree / "train" / f"d{i}").mkdir()
    assert data_warnings(config) == [f"no images in {tree}/train of c, d0, d1, d2, d3 and 3 more"]
    for path in tree.rglob("*.jpg"):
        path.unlink()
    assert f"{tree}/train has no image files in class folders" in refused(**FOLDER | {"root": str(tree)})


@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
@pytest.mark.parametrize("within", ["", "train"])
@pytest.mark.parametrize(("val_images", "held"), [(0.25, 3), (4, 4)])
def test_without_a_folder_for_it_a_part_of_each_class_is_tested_on(tree, augment, within, val_images, held):
    shutil.rmtree(tree / "test")
    root = tree
    if not within:  # root/CLASS/FILE
        root = tree / "train"
    arguments = FOLDER | {"root": str(root), "augment": augment, "val_images": val_images}
    config = dataset(**arguments)
    assert folders_used(config) == {"train": tree / "train"}
    assert dataset_facts(config) == Facts(classes=2, train_images=12 - held, val_images=0, test_images=held)
    one, other = build(**arguments), build(**arguments | {"seed": 1})
    assert one.val is None
    assert (one.train.num_images, one.test.num_images) == (12 - held, held)
    tested = [epoch(data.test) for data in (one, other)]
    assert torch.equal(tested[0][0], tested[1][0])
    assert tested[0][1].bincount().tolist() in ([2, 1], [2, 2])


def test_a_test_set_that_is_not_there_is_refused(tree):
    shutil.rmtree(tree / "test")
    promised = FOLDER | {"root": str(tree), "val_images": 0.25, "classes": 2, "train_images": 12, "test_images": 6}
    assert "has no val/ or test/ folder for dataset.test_images=6: set dataset.test_images=null" in refused(**promised)


def test_no_file_is_both_trained_and_tested_on(tree):
    shutil.rmtree(tree / "test")
    data = build(**FOLDER | {"root": str(tree), "val_images": 0.25})
    paths = [set(loader.batches.dataset.paths) for loader in (data.train, data.test)]
    assert not paths[0] & paths[1]
    assert paths[0] | paths[1] == {str(path) for path in tree.rglob("*.jpg")}


def test_a_fraction_of_train_is_validated_on_where_there_is_a_test_folder(tree):
    arguments = FOLDER | {"root": str(tree), "val_images": 0.5}
    assert dataset_facts(dataset(**arguments)) == Facts(2, 6, 6, 6)
    data = build(**arguments)
    assert epoch(data.val)[1].bincount().tolist() == [3, 3]
    assert data.test.num_images == 6


@pytest.mark.parametrize(
    ("folders", "split", "meant"),
    [
        (["train/a", "val/a", "test/a"], "val", "val"),
        (["train/a", "val/a"], "test", "val"),
        (["train/a", "val/a"], "train", "train"),
        (["val/a"], "test", "val"),
        (["val/a", "test/a"], "val", "val"),
        (["a", "b"], "test", ""),
    ],
)
def test_the_folder_to_evaluate_on_in_any_tree(folders, split, meant, tmp_path):
    for folder in folders:
        (tmp_path / folder).mkdir(parents=True)
    assert evaluation_folder(tmp_path, split) == tmp_path / meant


def test_a_tree_without_the_folder_to_evaluate_on_says_what_it_has(tmp_path):
    (tmp_path / "train" / "a").mkdir(parents=True)
    with pytest.raises(UserError, match=r"has no folder for test: choose train$"):
        evaluation_folder(tmp_path, "test")
