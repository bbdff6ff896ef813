"""Datasets by name, served as batches on the device: `build_data` is the door of this room."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from st3.data.arrays import ArrayLoader
from st3.data.config import DatasetConfig, Facts
from st3.data.datasets import DATASETS, DOWNLOADED, FOLDERS, MADE_HERE, Source, Split, required
from st3.data.folder_loader import DECODERS, FolderLoader
from st3.data.folders import scan_tree, split_folders
from st3.data.loader import Loader
from st3.data.memory import check_memory, decode_once
from st3.errors import UserError

__all__ = [
    "Data",
    "DatasetConfig",
    "Facts",
    "Loader",
    "build_data",
    "check_options",
    "dataset_facts",
    "folders_used",
]

AUGMENTATIONS = "none", "crop", "crop_flip", "random_resized_crop"
VAL_SEED = 0  # not the run's: every run holds out the same images


@dataclass(frozen=True)
class Data:
    """The loaders of one process (see `Loader` for their interface); `val` is None where no image is held out."""

    train: Loader
    val: Loader | None
    test: Loader
    classes: tuple[str, ...]


def build_data(
    config: DatasetConfig,
    *,
    batch_size: int,
    seed: int,
    device: torch.device | str,
    rank: int = 0,
    world_size: int = 1,
    eval_batch_size: int | None = None,
) -> Data:
    """Read a dataset and make the loaders of process `rank` of `world_size`.

    Every process draws the order of the whole epoch and serves its slice of each training batch, so each holds all
    training images where they are in memory. Of `val` and `test` a process serves only its own part, which may be
    empty; all parts together hold each image once.

    Args:
        batch_size: training images in a forward pass of all processes together.
        seed: together with the epoch decides order and augmentation.
        eval_batch_size: images in a forward pass of one process over `val` or `test`; None: chosen here.

    Raises:
        UserError: settings that do not fit the data or the device, or data that are absent or damaged.
    """
    device = torch.device(device)
    check_options(config)
    if config.decode == "gpu" and device.type != "cuda":
        raise UserError(f"dataset.decode=gpu needs a CUDA device, not {device}: set dataset.decode=cpu")

    source = DATASETS[config.name](config, seed)
    _check_facts(source, config)
    if source.val is not None and config.val_images:
        raise UserError(
            f"dataset.val_images={config.val_images} but {config.root} has a val/ folder for that: set it to 0"
        )
    if config.name in FOLDERS and not config.streamed:
        source = _in_memory(source, config, device, announce=rank == 0)
    train, val = (source.train, source.val) if source.val else _hold_out(source.train, config.val_images)
    if eval_batch_size is None:  # many small images at once, because launching their kernels takes longer than they do
        eval_batch_size = 2500 if device.type == "cuda" and config.image_size <= 64 else 500

    def loader(split: Split, **order: Any) -> Loader:
        order |= {"mean": config.mean, "std": config.std, "device": device}
        if isinstance(split.inputs, torch.Tensor):
            return ArrayLoader(split.inputs, split.labels, augment=config.augment, **order)
        order |= {"image_size": config.image_size, "channels": config.channels, "workers": config.workers}
        return FolderLoader(split.inputs, split.labels, decode=config.decode, **order)

    def evaluation(split: Split) -> Loader:
        return loader(split.part(rank, world_size), batch_size=eval_batch_size)

    return Data(
        train=loader(train, batch_size=batch_size, training=True, seed=seed, rank=rank, world_size=world_size),
        val=evaluation(val) if val else None,
        test=evaluation(source.test),
        classes=source.classes,
    )


def check_options(config: DatasetConfig) -> None:
    """Refuse what `build_data` would refuse whatever the data and the device are.

    Raises:
        UserError: a value that does not exist, does not fit the others, or has no effect with them.
    """
    name, augment, channels, decode = config.name, config.augment, config.channels, config.decode
    if config.image_size < 1:
        raise UserError(f"dataset.image_size={config.image_size} must be at least 1")
    if not all(std > 0 for std in config.std):
        raise UserError(f"dataset.std={config.std} must be positive")
    for key in ("val_images", "workers"):
        if getattr(config, key) < 0:
            raise UserError(f"dataset.{key}={getattr(config, key)} must not be negative")
    if decode not in DECODERS:
        raise UserError(f"dataset.decode={decode} does not exist: choose among {', '.join(DECODERS)}")
    if name not in DATASETS:
        raise UserError(f"unknown dataset {name!r}: set dataset.name to one of {', '.join(sorted(DATASETS))}")
    if augment not in AUGMENTATIONS:
        raise UserError(f"unknown dataset.augment={augment}: set one of {', '.join(AUGMENTATIONS)}")
    if config.streamed and name not in FOLDERS:
        raise UserError(f"dataset.augment={augment} reads image folders, not {name}: set dataset.augment=crop_flip")
    if channels not in (1, 3):
        raise UserError(f"dataset.channels={channels} is not supported: set dataset.channels=1 or 3")
    for key in ("mean", "std"):
        if (count := len(getattr(config, key))) != channels:
            raise UserError(
                f"dataset.{key} has {count} numbers but dataset.channels={channels}: set dataset.mean and "
                "dataset.std to one number per channel"
            )
    if decode == "gpu" and not config.streamed:
        raise UserError(f"dataset.decode=gpu has no effect with dataset.augment={augment}: set dataset.decode=cpu")
    if decode == "gpu" and channels != 3:
        raise UserError(f"dataset.decode=gpu gives RGB, not dataset.channels={channels}: set dataset.decode=cpu")
    if config.cache is not None and (config.streamed or name not in FOLDERS):
        what = f"dataset.augment={augment}" if config.streamed else name
        raise UserError(f"dataset.cache={config.cache} has no effect with {what}: set dataset.cache=null")
    if config.download and name not in DOWNLOADED:
        raise UserError(f"dataset.download=true has no effect on {name}: set dataset.download=false")
    if config.root is not None and name in MADE_HERE:
        raise UserError(f"dataset.root={config.root} has no effect on {name}: set dataset.root=null")


def dataset_facts(config: DatasetConfig) -> Facts:
    """The sizes that the configuration gives; those that it leaves out are counted in the folder. No image is opened.

    Raises:
        UserError: a size left out for a dataset that is no image folder, a folder that cannot be listed, or a
            validation set that takes all training images.
    """
    counted: dict[str, int] = {}
    if config.name in FOLDERS and None in (config.classes, config.train_images, config.test_images):
        listings = scan_tree(config.root)
        train, test = listings["train"], listings["test"]
        counted = {"classes": len(train.classes), "train_images": len(train), "test_images": len(test)}
    classes, train_images, test_images = (
        required(config, key, counted.get(key)) for key in ("classes", "train_images", "test_images")
    )
    held_out = config.val_images
    if held_out >= train_images:
        raise UserError(f"dataset.val_images={held_out} leaves nothing of {train_images} training images")
    return Facts(classes, train_images - held_out, held_out, test_images)


def folders_used(config: DatasetConfig) -> dict[str, Path]:
    """The folders of an image tree by use ("train", "test", perhaps "val"); none for other datasets."""
    return split_folders(config.root) if config.name in FOLDERS and config.root is not None else {}


def _check_facts(source: Source, config: DatasetConfig) -> None:
    """Refuse data that are not what the configuration says, all differences in one message."""
    found = {
        "classes": (len(source.classes), "classes"),
        "train_images": (len(source.train.labels), "training images"),
        "test_images": (len(source.test.labels), "test images"),
    }
    if isinstance(source.train.inputs, np.ndarray):  # files: converted to the wanted channels and size
        found["classes"] = len(source.classes), "class folders"
    else:
        _, channels, _, width = source.train.inputs.shape
        found |= {"channels": (channels, "channels"), "image_size": (width, "pixels a side")}
    odd = [key for key, (value, _) in found.items() if getattr(config, key) not in (None, value)]
    if odd:
        raise UserError(
            f"{' '.join(f'dataset.{key}={getattr(config, key)}' for key in odd)} but "
            f"{config.root if config.name in FOLDERS else config.name} has "
            f"{', '.join(f'{found[key][0]} {found[key][1]}' for key in odd)}: "
            f"set {' '.join(f'dataset.{key}={found[key][0]}' for key in odd)}"
        )


def _in_memory(source: Source, config: DatasetConfig, device: torch.device, announce: bool) -> Source:
    """An image folder with pixels in place of its file names."""
    splits = [split for split in (source.train, source.val, source.test) if split]
    copied = len(source.train.labels) if config.val_images else 0
    check_memory(sum(len(split.labels) for split in splits), copied, config, device)

    def decoded(split: Split) -> Split:
        assert isinstance(split.inputs, np.ndarray)
        return Split(decode_once(split.inputs, config, announce), split.labels)

    train, val = decoded(source.train), decoded(source.val) if source.val else None
    return replace(source, train=train, val=val, test=decoded(source.test))


def _hold_out(split: Split, val_images: int) -> tuple[Split, Split | None]:
    """(training, validation): a random `val_images` of the training images, drawn with a fixed seed."""
    count = len(split.labels)
    if val_images >= count:
        raise UserError(
            f"dataset.val_images={val_images} of {count} training images: set dataset.val_images below {count}"
        )
    if not val_images:  # without the copy that taking all of them is
        return split, None
    order = torch.randperm(count, generator=torch.Generator().manual_seed(VAL_SEED))
    return split.take(order[val_images:].sort().values), split.take(order[:val_images].sort().values)
