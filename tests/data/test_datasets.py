"""The datasets by name: embedded, downloaded, made."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_cases import FAKE, build, dataset, epoch, refused

from st3.data.datasets import EMBEDDED_FILE, fashion_mnist_embedded, official
from st3.errors import UserError


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


@pytest.mark.parametrize(
    ("name", "file", "folder"),
    [("cifar10", "cifar-10-python.tar.gz", "."), ("mnist", "train-images-idx3-ubyte.gz", "MNIST/raw")],
)
def test_absent_files_are_named_with_their_place(tmp_path, name, file, folder):
    message = refused(**FAKE | {"name": name, "root": str(tmp_path)})
    assert file in message
    assert f"into {tmp_path / folder} and set dataset.download=true" in message


@pytest.mark.parametrize("folder", [".", "MNIST/raw"])
@pytest.mark.parametrize("found", ["nothing", "empty", "file"])
def test_a_failed_download_leaves_the_folders_as_they_were(tmp_path, found, folder):
    root = tmp_path / "new" / "data"
    if found != "nothing":
        root.mkdir(parents=True)
    if found == "file":
        (root / "kept").touch()

    class Unreachable:
        def __init__(self, place, *, train, download):
            Path(place, folder).mkdir(parents=True, exist_ok=True)
            raise RuntimeError("no network")

    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match="the download failed"):
        official(Unreachable, "file", folder, dataset(**FAKE | {"root": str(root), "download": True}))
    assert sorted(tmp_path.rglob("*")) == before


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
    images, labels = epoch(build(**FAKE | {"name": "mnist"} | arguments | counts).test)
    assert np.array_equal(images[:, 0].round().numpy(), pixels[:4])
    assert labels.tolist() == [0, 1, 2, 3]


def test_colour_arrays_become_channels_first():
    class Colours:
        classes = ("a", "b")

        def __init__(self, root, *, train, download):
            self.data = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
            self.targets = [1, 0]

    split = official(Colours, "file", ".", dataset(**FAKE | {"root": "data"})).train
    assert split.inputs.shape == (2, 3, 4, 4)
    assert split.inputs[0, :, 0, 1].tolist() == [3, 4, 5]
    assert split.labels.tolist() == [1, 0]
