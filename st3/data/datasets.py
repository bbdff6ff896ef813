"""The datasets by name: each function returns whole splits, not yet augmented or cut into batches."""

import contextlib
import hashlib
import lzma
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision import datasets

from st3.data.config import DatasetConfig
from st3.data.folders import Listing, scan_tree
from st3.errors import DataError, UserError

EMBEDDED_FILE = Path(__file__).parent / "embedded" / "fashion_mnist.xz"
EMBEDDED_TRAIN, EMBEDDED_TEST = 8_000, 2_000
EMBEDDED_SHA256 = "1752d0e78e344d865a09aea76dc5cf6a673a58ee8746ae275151d2e3e1a5b132"


@dataclass(frozen=True)
class Split:
    """`inputs`: images, a uint8 tensor [N, C, H, W], or file paths, an object array [N]; `labels`: int64 [N]."""

    inputs: torch.Tensor | np.ndarray
    labels: torch.Tensor
    readable: torch.Tensor | None = None
    """bool [N]: False where the image could not be read; None: all could, or have not been read yet."""

    def take(self, indices: torch.Tensor) -> "Split":
        """The images at `indices`, int64 [M]."""
        readable = None if self.readable is None else self.readable[indices]
        return Split(self.inputs[indices.numpy()], self.labels[indices], readable)

    def part(self, rank: int, world_size: int) -> "Split":
        """The consecutive images of one process, perhaps none. All processes together have each image once."""
        start, stop = (len(self.labels) * each // world_size for each in (rank, rank + 1))
        readable = None if self.readable is None else self.readable[start:stop]
        return Split(self.inputs[start:stop], self.labels[start:stop], readable)

    def without_unreadable(self, training: bool) -> "Split":
        """Smaller by what could not be read; in training, the next readable image is there in its place, too."""
        if self.readable is None or self.readable.all():
            return self
        readable = self.readable.nonzero()[:, 0]
        if not training:
            return self.take(readable)
        following = torch.searchsorted(readable, torch.arange(len(self.labels))) % len(readable)
        return self.take(readable[following])


@dataclass(frozen=True)
class Source:
    """A dataset as it lies on disk; label i means `classes[i]`."""

    train: Split
    test: Split | None
    """None: what is held out of the training images is tested on."""
    classes: tuple[str, ...]
    val: Split | None = None
    """Validation images, where the dataset has them apart from the training images."""
    folders: Mapping[str, str] = field(default_factory=dict)
    """Of image files: the folder with the class folders, of each split by its name here."""


def required(config: DatasetConfig, key: str, default: int | None = None) -> int:
    """The setting `key` of a dataset, or the default where it is null.

    Raises:
        UserError: neither is given.
    """
    value: int | None = getattr(config, key)
    value = default if value is None else value
    if value is None:
        raise UserError(f"dataset.{key}=N is needed by dataset={config.name}")
    return value


def fashion_mnist_embedded(path: Path = EMBEDDED_FILE) -> Source:
    """The first 8,000 training and 2,000 test images of Fashion-MNIST, from the file inside the package.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        payload = lzma.decompress(path.read_bytes())
    except (OSError, lzma.LZMAError, EOFError):
        payload = b""
    if hashlib.sha256(payload).hexdigest() != EMBEDDED_SHA256:
        raise DataError(f"{path} is missing or damaged: reinstall st3 or set dataset=fashion_mnist")
    count = EMBEDDED_TRAIN + EMBEDDED_TEST
    data = torch.frombuffer(bytearray(payload), dtype=torch.uint8)
    images, labels = data[:-count].view(count, 1, 28, 28), data[-count:].long()
    sizes = [EMBEDDED_TRAIN, EMBEDDED_TEST]
    train, test = map(Split, images.split(sizes), labels.split(sizes))
    return Source(train, test, tuple(datasets.FashionMNIST.classes))


def official(dataset: Any, files: str, folder: str, config: DatasetConfig, _seed: int = 0) -> Source:
    """A dataset that torchvision's class `dataset` downloads; `files` belong into root/`folder`.

    Raises:
        UserError: no root.
        DataError: the files are absent or damaged, or the download failed.
    """
    root, download = config.root, config.download
    if root is None:
        raise UserError("dataset.root=DIR is needed: the folder that holds the downloaded files")
    place = Path(root, folder)
    absent = [each for each in (place, *place.parents) if not os.path.exists(each)]

    try:
        train, test = (dataset(root, train=part, download=download) for part in (True, False))
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = "the download failed" if download else "dataset.download=false"
        raise DataError(
            f"no usable {dataset.__name__} in dataset.root={root} and {reason} ({str(error).splitlines()[0]}): put "
            f"{files} into {place} and set dataset.download=true, or set dataset=fashion_mnist_embedded"
        ) from None
    finally:
        for each in absent:  # torchvision makes its folders even if it has nothing to put there
            with contextlib.suppress(OSError):  # not made, or not empty
                each.rmdir()

    def split(part: Any) -> Split:
        images = torch.as_tensor(part.data)
        images = images[:, None] if images.ndim == 3 else images.permute(0, 3, 1, 2)
        return Split(images, torch.as_tensor(part.targets, dtype=torch.int64))

    return Source(split(train), split(test), tuple(train.classes))


def listed(folder: Listing) -> Split:
    """The files of one folder; nothing is read."""
    return Split(np.array([path for path, _ in folder.samples], dtype=object), torch.tensor(folder.targets))


def image_folder(config: DatasetConfig, _seed: int = 0) -> Source:
    """An ImageFolder tree: root/train, perhaps with root/val, root/test or both; or root with one folder per class.

    Raises:
        UserError, DataError: as `scan_tree`.
    """
    listings = scan_tree(config.root)

    splits = {use: listed(listing) for use, listing in listings.items()}
    classes = tuple(listings["train"].classes)
    folders = {use: str(listing.root) for use, listing in listings.items()}
    return Source(splits["train"], splits.get("test"), classes, splits.get("val"), folders)


def fake(config: DatasetConfig, seed: int) -> Source:
    """Random images and labels, a function of `seed`.

    Raises:
        UserError: a size is null.
    """
    sizes = "classes", "train_images", "test_images"
    classes, train_images, test_images = (required(config, key) for key in sizes)
    random = torch.Generator().manual_seed(seed)

    def split(count: int) -> Split:
        shape = count, config.channels, config.image_size, config.image_size
        images = torch.randint(256, shape, dtype=torch.uint8, generator=random)
        return Split(images, torch.randint(classes, (count,), generator=random))

    return Source(split(train_images), split(test_images), tuple(map(str, range(classes))))


Reader = Callable[[DatasetConfig, int], Source]
"""Reads a dataset, or makes it from the second argument, the run's seed."""

MNIST_FILES = ", ".join(Path(url).name for url, _ in datasets.MNIST.resources)
DOWNLOADED: dict[str, Reader] = {
    "cifar10": partial(official, datasets.CIFAR10, datasets.CIFAR10.filename, "."),
    "cifar100": partial(official, datasets.CIFAR100, datasets.CIFAR100.filename, "."),
    "fashion_mnist": partial(official, datasets.FashionMNIST, MNIST_FILES, "FashionMNIST/raw"),
    "mnist": partial(official, datasets.MNIST, MNIST_FILES, "MNIST/raw"),
}
FOLDERS: dict[str, Reader] = {"folder": image_folder, "cifar10_folder": image_folder, "imagenet": image_folder}
MADE_HERE: dict[str, Reader] = {"fake": fake, "fashion_mnist_embedded": lambda config, seed: fashion_mnist_embedded()}
DATASETS = DOWNLOADED | FOLDERS | MADE_HERE
