"""Order, augmentation and normalisation of batches; image folders; what is refused, and in which words."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from st3.data import build_data, dataset_facts
from st3.data.arrays import PADDING, ArrayLoader, crop_flip
from st3.data.datasets import EMBEDDED_FILE, fashion_mnist_embedded, official
from st3.errors import UserError

CONFIGS = sorted((Path(__file__).parents[1] / "configs" / "dataset").glob("*.yaml"))
KEYS = [
    "name", "root", "classes", "channels", "image_size", "mean", "std", "augment", "val_images", "train_images",
    "test_images", "workers", "download",
]  # fmt: skip

FAKE = {
    "name": "fake", "root": None, "classes": 10, "channels": 3, "image_size": 8, "mean": [0.5, 0.4, 0.3],
    "std": [0.2, 0.25, 0.3], "augment": "crop_flip", "val_images": 0, "train_images": 50, "test_images": 23,
    "workers": 0, "download": False, "batch_size": 16, "seed": 0, "device": "cpu", "eval_batch_size": 10,
}  # fmt: skip
FOLDER = FAKE | {
    "name": "folder", "classes": None, "train_images": None, "test_images": None, "image_size": 16,
    "augment": "random_resized_crop", "batch_size": 4,
}  # fmt: skip


def epoch(loader, number=0):
    """All (images, labels) of one epoch, concatenated."""
    images, labels = zip(*loader.epoch(number), strict=True)
    return torch.cat(images), torch.cat(labels)


@pytest.fixture
def tree(tmp_path):
    """train/ with 6 and test/ with 3 JPEG files of 24x20 pixels in each of the classes a, b."""
    pixels = np.random.default_rng(0)
    for split, count in (("train", 6), ("test", 3)):
        for label in ("a", "b"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(pixels.integers(256, size=(20, 24, 3), dtype=np.uint8)).save(folder / f"{i}.jpg")
    return tmp_path


def refused(**arguments) -> str:
    with pytest.raises(UserError) as caught:
        build_data(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Batches from memory


def test_crop_flip_equals_padding_cropping_and_mirroring_one_image_at_a_time():
    images = torch.randint(256, (40, 3, 9, 7), dtype=torch.uint8)
    offsets = torch.randint(2 * PADDING + 1, (40, 2))
    offsets[:3] = torch.tensor([[0, 0], [2 * PADDING, 2 * PADDING], [PADDING, PADDING]])
    flips = torch.arange(40) % 2 == 1
    expected = []
    for image, (row, column), flip in zip(images, offsets.tolist(), flips, strict=True):
        padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)), mode="edge")
        crop = padded[:, row : row + 9, column : column + 7]
        expected.append(torch.from_numpy(crop[..., ::-1].copy() if flip else crop))
    cropped = crop_flip(images, offsets, flips)
    assert torch.equal(cropped, torch.stack(expected))
    assert cropped.is_contiguous(memory_format=torch.channels_last)


def test_batches_are_a_function_of_seed_and_epoch():
    first = build_data(**FAKE).train
    expected = epoch(first, 3)
    second = build_data(**FAKE).train
    next(second.epoch(0))
    torch.manual_seed(99)
    before = torch.get_rng_state()
    again = epoch(second, 3)
    assert all(map(torch.equal, expected, again))
    assert torch.equal(before, torch.get_rng_state())
    images, labels = first.images, first.labels
    other_seed = ArrayLoader(
        images.permute(0, 3, 1, 2), labels, batch_size=16, mean=FAKE["mean"], std=FAKE["std"],
        augment="crop_flip", training=True, seed=1,
    )  # fmt: skip
    assert not torch.equal(expected[0], epoch(first, 4)[0])
    assert not torch.equal(expected[0], epoch(other_seed, 3)[0])


def indexed(count, **arguments):
    """A loader of `count` images whose label is their index."""
    images = torch.randint(256, (count, 1, 8, 8), dtype=torch.uint8)
    return ArrayLoader(images, torch.arange(count), mean=[0.0], std=[1.0], **arguments), images


def test_training_drops_other_images_each_epoch():
    loader, _ = indexed(50, batch_size=16, training=True)
    assert (len(loader), loader.num_images) == (3, 50)
    dropped = set()
    for number in range(10):
        served = epoch(loader, number)[1].tolist()
        assert len(set(served)) == len(served) == 48
        dropped |= set(range(50)) - set(served)
    assert len(dropped) > 2


def test_evaluation_serves_every_image_once_in_order_and_untouched():
    loader, images = indexed(23, batch_size=10, augment="crop_flip")
    sizes = [len(labels) for _, labels in loader.epoch(0)]
    served, labels = epoch(loader)
    assert sizes == [10, 10, 3]
    assert len(loader) == 3
    assert labels.tolist() == list(range(23))
    assert torch.allclose(served, images / 255)


@pytest.mark.parametrize("augment", ["crop", "crop_flip"])
def test_augmentation_uses_all_offsets_and_flips_only_when_asked(augment):
    # A column ramp shows shift and direction: pixel (4, 4) of a crop holds 10 * column.
    ramp = (10 * torch.arange(9, dtype=torch.uint8)).expand(2000, 1, 9, 9)
    labels = torch.zeros(2000, dtype=torch.int64)
    loader = ArrayLoader(ramp, labels, batch_size=100, mean=[0.0], std=[1.0], augment=augment, training=True)
    images = epoch(loader)[0][:, 0] * 255
    rising = (images[:, 4, -1] > images[:, 4, 0]).float().mean().item()
    assert rising == 1 if augment == "crop" else 0.45 < rising < 0.55
    assert sorted(set(images[:, 4, 4].round().int().tolist())) == list(range(0, 90, 10))


def test_normalisation():
    pixels = torch.tensor([0, 255, 51]).to(torch.uint8).view(3, 1, 1, 1).expand(3, 2, 2, 2)
    loader = ArrayLoader(pixels, torch.zeros(3, dtype=torch.int64), batch_size=3, mean=[0.5, 0.2], std=[0.25, 0.1])
    ((images, labels),) = loader.epoch(0)
    assert torch.allclose(images[:, 0, 0, 0], torch.tensor([-2.0, 2.0, -1.2]))
    assert torch.allclose(images[:, 1, 0, 0], torch.tensor([-2.0, 8.0, 0.0]), atol=1e-6)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert images.is_contiguous(memory_format=torch.channels_last)


def test_validation_images_are_held_out_the_same_for_every_seed():
    size = {"name": "fashion_mnist_embedded", "image_size": 28, "channels": 1, "mean": [0.0], "std": [1.0]}
    counts = {"train_images": 8000, "test_images": 2000, "augment": "none", "val_images": 1000}
    one, two = (build_data(**FAKE | size | counts | {"seed": seed}) for seed in (1, 2))
    assert torch.equal(one.val.images, two.val.images)
    assert one.val.num_images == 1000
    held, kept, whole = (
        {image.numpy().tobytes() for image in images}
        for images in (one.val.images, one.train.images, fashion_mnist_embedded().train.inputs)
    )
    assert not held & kept
    assert held | kept == whole
    assert len(set(one.val.labels.tolist())) == 10


# Embedded data


def test_embedded_data():
    source = fashion_mnist_embedded()
    for split, count in ((source.train, 8000), (source.test, 2000)):
        assert split.inputs.shape == (count, 1, 28, 28)
        assert split.inputs.dtype == torch.uint8
        # Every class holds about a tenth: labels and images were cut apart at the right place.
        assert torch.bincount(split.labels, minlength=10).div(count).sub(0.1).abs().max() < 0.02
    assert source.train.labels[:3].tolist() == [9, 0, 0]  # the official file begins with a boot and two shirts
    assert source.test.labels[:3].tolist() == [9, 2, 1]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "absent"])
def test_damaged_embedded_data_are_refused(tmp_path, damage):
    content = bytearray(EMBEDDED_FILE.read_bytes())
    content[len(content) // 2] ^= 1
    copy = tmp_path / "copy.xz"
    if damage != "absent":
        copy.write_bytes(content if damage == "flipped" else content[:1000])
    with pytest.raises(UserError, match=r"copy\.xz is missing or damaged"):
        fashion_mnist_embedded(copy)


# Image folders


@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
@pytest.mark.parametrize("channels", [1, 3])
def test_folder_counts_shapes_and_labels(tree, augment, channels):
    stats = {"mean": [0.5] * channels, "std": [0.5] * channels, "channels": channels}
    data = build_data(**FOLDER | stats | {"root": str(tree), "augment": augment, "val_images": 2})
    assert data.classes == ("a", "b")
    assert [loader.num_images for loader in (data.train, data.val, data.test)] == [10, 2, 6]
    images, labels = epoch(data.train)
    assert images.shape == (8, channels, 16, 16)
    images, labels = epoch(data.test)
    assert images.shape == (6, channels, 16, 16)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part, _ in data.test.epoch(0))


def test_grey_conversion_is_the_luminance(tree):
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tree / "test" / "a" / "0.png")
    (tree / "test" / "a" / "0.jpg").unlink()
    for augment in ("random_resized_crop", "none"):
        grey = {"channels": 1, "mean": [0.0], "std": [1 / 255], "augment": augment}
        images, _ = epoch(build_data(**FOLDER | grey | {"root": str(tree)}).test)
        luminance = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
        assert (images[0] - luminance).abs().max() <= 1


def test_folder_batches_do_not_depend_on_the_number_of_workers(tree):
    alone, helped = (build_data(**FOLDER | {"root": str(tree), "workers": n}).train for n in (0, 2))
    before = torch.get_rng_state()
    expected = epoch(alone, 5)
    next(iter(helped.epoch(0)))
    assert all(map(torch.equal, expected, epoch(helped, 5)))
    assert torch.equal(before, torch.get_rng_state())
    other = epoch(alone, 6)
    assert not torch.equal(expected[0], other[0])


def test_folder_augmentation_draws_anew_for_each_image_and_epoch(tree):
    for path in (tree / "train").rglob("*.jpg"):
        Image.fromarray(np.arange(20 * 24 * 3, dtype=np.uint8).reshape(20, 24, 3)).save(path)
    loader = build_data(**FOLDER | {"root": str(tree)}).train
    views = {image.numpy().tobytes() for number in (0, 1) for image in epoch(loader, number)[0]}
    assert len(views) == 24


def test_images_of_the_right_size_reach_memory_unchanged(tmp_path):
    pixels = np.random.default_rng(0).integers(256, size=(4, 16, 16, 3), dtype=np.uint8)
    for split in ("train", "val"):
        (tmp_path / split / "a").mkdir(parents=True)
        for i, image in enumerate(pixels):
            Image.fromarray(image).save(tmp_path / split / "a" / f"{i}.png")
    data = build_data(**FOLDER | {"root": str(tmp_path), "augment": "none"})
    assert np.array_equal(data.test.images.numpy(), pixels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["random_resized_crop", "none"])
def test_a_corrupt_file_is_named(tree, workers, augment):
    bad = tree / "test" / "b" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    with pytest.raises(UserError) as caught:
        epoch(build_data(**FOLDER | {"root": str(tree), "workers": workers, "augment": augment}).test)
    assert str(caught.value).startswith(f"cannot read image {bad}: ")
    assert str(caught.value).endswith("; remove or replace the file")
    assert "Traceback" not in str(caught.value)


def test_facts_of_a_folder_come_from_its_listing(tree):
    for path in tree.rglob("*.jpg"):
        path.write_bytes(b"never opened")
    assert dataset_facts("folder", str(tree), None, None, None) == (2, 12, 6)
    assert dataset_facts("folder", str(tree), 5, None, None) == (5, 12, 6)
    assert dataset_facts("imagenet", None, 1000, 1_281_167, 50_000) == (1000, 1_281_167, 50_000)
    with pytest.raises(UserError, match=r"dataset\.train_images=N is needed by dataset=fake"):
        dataset_facts("fake", None, 10, None, 5)


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "fakes"}, "unknown dataset 'fakes': set dataset.name to one of"),
        ({"augment": "cutout"}, "unknown dataset.augment=cutout"),
        ({"augment": "random_resized_crop"}, "set dataset.augment=crop_flip"),
        ({"channels": 2}, "set dataset.channels=1 or 3"),
        ({"mean": [0.5]}, "dataset.mean has 1 numbers but dataset.channels=3"),
        ({"std": [0.5]}, "dataset.std has 1 numbers but dataset.channels=3"),
        ({"batch_size": 51}, "batch_size=51 is larger than the 50 training images: lower batch_size"),
        ({"batch_size": 50, "val_images": 1}, "batch_size=50 is larger than the 49 training images"),
        ({"val_images": 50}, "set dataset.val_images below 50"),
        ({"train_images": None}, "dataset.train_images=N is needed"),
        ({"download": True}, "set dataset.download=false"),
        ({"root": "somewhere"}, "set dataset.root=null"),
        (
            {"name": "fashion_mnist_embedded", "train_images": None, "test_images": None},
            "dataset.channels=3 dataset.image_size=8 but fashion_mnist_embedded has 1 channels, 28 pixels a side: "
            "set dataset.channels=1 dataset.image_size=28",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(change, message):
    assert message in refused(**FAKE | change)


def test_a_tree_with_val_and_test_is_validated_on_one_and_tested_on_the_other(tree):
    for label, count in (("a", 2), ("b", 5)):
        shutil.copytree(tree / "test" / label, tree / "val" / label)
        for i in range(3, count):
            shutil.copy(tree / "test" / label / "0.jpg", tree / "val" / label / f"{i}.jpg")
    arguments = {**FOLDER, "root": str(tree)}
    data = build_data(**arguments)
    assert (data.train.num_images, data.val.num_images, data.test.num_images) == (12, 8, 6)
    assert "has a val/ folder for that" in refused(**arguments | {"val_images": 2})
    assert dataset_facts("folder", str(tree), None, None, None) == (2, 12, 6)

    shutil.rmtree(tree / "test")
    (tree / "test").mkdir()
    (tree / "test" / "unlabelled.jpg").touch()  # as ImageNet's
    data = build_data(**arguments)
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
    (tree / "test" / "c").mkdir()
    assert "remove empty class folders" in refused(**arguments)
    Image.new("RGB", (8, 8)).save(tree / "test" / "c" / "0.jpg")
    assert "hold other classes (c)" in refused(**arguments)
    (tree / "test").rename(tree / "held")
    assert "has no val/ or test/ folder" in refused(**arguments)


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [("cifar10", "cifar-10-python.tar.gz", "."), ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw")],
)
def test_absent_files_are_named_with_their_place(tmp_path, name, file, folder):
    message = refused(**FAKE | {"name": name, "root": str(tmp_path)})
    assert file in message
    assert f"into {tmp_path / folder} and set dataset.download=true" in message


def test_mnist_files_are_read_in_place(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(7, 28, 28), dtype=np.uint8)
    for split, count in (("train", 7), ("t10k", 4)):
        head = np.array([0x803, count, 28, 28], ">i4").tobytes()
        (raw / f"{split}-images-idx3-ubyte").write_bytes(head + pixels[:count].tobytes())
        head = np.array([0x801, count], ">i4").tobytes()
        (raw / f"{split}-labels-idx1-ubyte").write_bytes(head + bytes(range(count)))
    arguments = {"root": str(tmp_path), "channels": 1, "image_size": 28, "mean": [0.0], "std": [1 / 255]}
    counts = {"train_images": 7, "test_images": 4, "batch_size": 7}
    images, labels = epoch(build_data(**FAKE | {"name": "mnist"} | arguments | counts).test)
    assert np.array_equal(images[:, 0].round().numpy(), pixels[:4])
    assert labels.tolist() == [0, 1, 2, 3]


def test_colour_arrays_become_channels_first():
    class Colours:
        classes = ("a", "b")

        def __init__(self, root, *, train, download):
            self.data = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
            self.targets = [1, 0]

    split = official(Colours, "file", ".", root="data", download=False).train
    assert split.inputs.shape == (2, 3, 4, 4)
    assert split.inputs[0, :, 0, 1].tolist() == [3, 4, 5]
    assert split.labels.tolist() == [1, 0]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_dataset_file_has_the_same_keys_and_types(path):
    config = yaml.safe_load(path.read_text())
    assert list(config) == KEYS
    assert len(config["mean"]) == len(config["std"]) == config["channels"]
    assert isinstance(config["augment"], str)


@pytest.mark.parametrize("name", ["fake", "fashion_mnist_embedded"])
def test_datasets_without_files_build_from_their_configuration(name):
    config = yaml.safe_load(next(path for path in CONFIGS if path.stem == name).read_text())
    data = build_data(**config, batch_size=64, seed=0, device="cpu")
    images, _ = epoch(data.test)
    # Mean and standard deviation are the dataset's own.
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02
